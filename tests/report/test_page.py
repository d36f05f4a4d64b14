"""The morning page in a real browser: it shows what was published, and does nothing else."""

import csv
import hashlib
import io
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from imgcls.config.scoring import ReportConfig
from imgcls.errors import ConfigError
from imgcls.inert import from_csv
from imgcls.model.registry import register
from imgcls.report.make import make_page, report
from imgcls.report.read import Night
from imgcls.runs.run import Run
from tests.report.browser import opened
from tests.report.nights import publish_night, row_of
from tests.scoring.tiny import make_bundle

HOSTILE = '"><script>document.title="owned"</script><img src=x onerror=alert(1)>'


def rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    return [row_of(number, **changes) for number in range(count)]


def sentence(page: Any) -> str:
    return str(page.inner_text("h1"))


@pytest.mark.parametrize(("count", "width"), [(0, 1280), (1, 390), (600, 1280), (600, 390)])
def test_a_page_opens_without_a_complaint_or_a_request(
    tmp_path: Path, count: int, width: int
) -> None:
    output = str(tmp_path)
    publish_night(output, rows(count))
    made = report(ReportConfig(output))
    with opened(made["page"], width=width) as shown:
        assert shown.complaints == []
        assert shown.requests == [Path(made["page"]).as_uri()] + [
            url for url in shown.requests[1:] if url.startswith("data:image/jpeg;base64,")
        ]
        assert sentence(shown.page).startswith(f"{count:,} image")
        overflow = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not shown.page.evaluate(overflow), "it scrolls sideways"
    with opened(made["page"], width=width, bypass_csp=True) as shown:
        assert shown.serious_findings() == []


def test_the_page_shows_what_the_rows_say(tmp_path: Path) -> None:
    output, night = str(tmp_path), rows(600)
    publish_night(output, night)
    positive = [row for row in night if row["decision"] == "positive"]
    review = [row for row in night if row["decision"] == "review"]
    failed = [row for row in night if row["status"] != "ok"]
    made = report(ReportConfig(output))
    with opened(made["page"]) as shown:
        page = shown.page
        assert sentence(page) == (
            f"600 images: {600 - len(failed)} scored, {len(failed)} could not be read; "
            f"{len(positive)} positive, {len(review)} to review"
        )
        names = page.eval_on_selector_all("#positive-list h3", "all => all.map(e => e.innerText)")
        by_probability = sorted(positive, key=lambda row: -row["calibrated_prob"])
        assert names == [row["uri"].rpartition("/")[2] for row in by_probability]
        assert page.locator("#positive-list img").count() == len(positive)
        assert page.locator("#failed-list li").count() == len(failed)
        assert "ends in the middle" in page.inner_text("#failed-list")
    for name, expected in (("positive", positive), ("review", review), ("failed", failed)):
        text = Path(Run(output, made["run_id"]).page(f"{name}.csv")).read_text("utf-8-sig")
        listed = list(csv.DictReader(io.StringIO(text)))
        assert [row["uri"] for row in listed] == [row["uri"] for row in expected]


def test_everything_is_reached_and_done_by_keyboard(tmp_path: Path) -> None:
    output = str(tmp_path)
    links = [row | {"uri": f"https://host/{n:04d}.jpg"} for n, row in enumerate(rows(300))]
    publish_night(output, links)
    made = report(ReportConfig(output))
    with opened(made["page"]) as shown:
        page = shown.page
        for key in ("Tab", "Shift+Tab"):
            reached, expected = shown.walk(key)
            assert reached == expected, "in the order in which it is read, and nothing is a trap"
        assert len(expected) > 2 * 300 * 0.03, "the link of each card, too"

        shown.start_at_the_top()
        while page.evaluate("document.activeElement.hash") != "#review":
            page.keyboard.press("Tab")
        page.keyboard.press("Enter")
        assert page.evaluate("location.hash") == "#review"
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.dataset.list") == "review-list", "it is there"

        cards = page.locator("#review-list li")
        number = cards.nth(3).inner_text().partition(".jpg")[0]
        page.keyboard.type(number)
        visible = page.locator("#review-list li:not([hidden])")
        assert visible.count() == 1
        assert page.inner_text("#review output") == f"1 of {cards.count()} shown"
        reached, expected = shown.walk()
        assert reached == expected, "what is hidden is not walked through"
        while page.evaluate("document.activeElement.dataset.list") != "review-list":
            page.keyboard.press("Shift+Tab")
        if page.evaluate("document.activeElement.tagName") == "SELECT":
            page.keyboard.press("Shift+Tab")
        page.keyboard.press("Escape")
        assert visible.count() == cards.count(), "Escape shows all again"

        page.keyboard.press("Tab")
        orders = {}
        for name in ("name", "high", "low"):  # one further down, each time
            page.keyboard.press("ArrowDown")
            assert page.evaluate("document.activeElement.value") == name
            orders[name] = visible.evaluate_all(
                "all => all.map(e => [e.dataset.name, Number(e.dataset.probability)])"
            )
        assert orders["name"] == sorted(orders["name"])
        assert [value for _, value in orders["low"]] == sorted(v for _, v in orders["low"])
        assert [v for _, v in orders["high"]] == sorted((v for _, v in orders["low"]), reverse=True)
        assert page.inner_text("h1").startswith("300 images"), "nothing was left by a key"


def test_hostile_names_and_classes_are_text(tmp_path: Path) -> None:
    output = str(tmp_path)
    night = [
        *rows(3),
        row_of(4, uri=f"s3://b/{HOSTILE}", class_name=HOSTILE, decision="positive",
               calibrated_prob=0.9, confidence=0.9),
        row_of(5, uri="s3://b/=cmd|' /C calc'!A0", status="corrupt", error=HOSTILE),
        row_of(6, uri="https://host/x.jpg", decision="positive", calibrated_prob=0.8),
        row_of(7, uri="https://host/x.jpg?secret=1", decision="positive", calibrated_prob=0.8),
        row_of(8, uri="javascript:alert(1)//x", decision="positive", calibrated_prob=0.7),
    ]  # fmt: skip
    publish_night(output, night)
    made = report(ReportConfig(output))
    with opened(made["page"]) as shown:
        assert shown.complaints == []
        assert shown.page.title() != "owned"
        assert HOSTILE in shown.page.inner_text("#positive-list")
        assert shown.page.locator("script").count() == 1
        links = shown.page.eval_on_selector_all("li a", "all => all.map(a => a.href)")
        assert set(links) == {"https://host/x.jpg"}
    text = Path(Run(output, made["run_id"]).page("failed.csv")).read_text("utf-8-sig")
    cells = [cell for line in csv.reader(io.StringIO(text)) for cell in line]
    assert not any(cell.startswith(("=", "+", "-", "@")) for cell in cells)
    assert "s3://b/=cmd|' /C calc'!A0" in map(from_csv, cells)


def test_codes_instead_of_names_leave_no_name(tmp_path: Path) -> None:
    output = str(tmp_path)
    carried = pa.field("patient", pa.string())
    publish_night(output, rows(300, patient="DOE^JANE"), extra=(carried,))
    report(ReportConfig(output))
    run = Run(output, "nightly-2026-11-24")
    assert "DOE^JANE" in Path(run.page("report.html")).read_text()
    report(ReportConfig(output, names="hashed"))
    for file in Path(run.page("report.html")).parent.iterdir():
        for name in (b"DOE^JANE", b"part 0", b"camera"):
            assert name not in file.read_bytes(), file


def test_a_medical_night_says_so_on_top(tmp_path: Path) -> None:
    output = str(tmp_path)
    publish_night(output, rows(20, format="dicom"))
    page = Path(report(ReportConfig(output))["page"]).read_text()
    top = " ".join(page.partition("<h1>")[0].split())
    assert "This page shows patients' pictures" in top
    assert "not a medical device" in top


def test_a_night_resumed_shows_the_same_sample(tmp_path: Path) -> None:
    pages = []
    for name in ("a", "b"):
        output = str(tmp_path / name)
        folder, manifest = publish_night(output, rows(600))
        text = Path(make_page(Night(output, folder, manifest), [manifest])).read_text()
        pages.append(hashlib.sha256(text.replace(output, "").encode()).hexdigest())
    assert pages[0] == pages[1]


def test_a_decision_names_the_class_that_its_probability_is_of(tmp_path: Path) -> None:
    output = str(tmp_path)
    # A low threshold: positive, though another class is more probable.
    rare = row_of(1, decision="positive", calibrated_prob=0.31, class_name="ok", confidence=0.69)
    fine = row_of(2, decision="negative", calibrated_prob=0.04, class_name="ok", confidence=0.96)
    publish_night(output, [rare, fine])
    with opened(report(ReportConfig(output))["page"]) as shown:
        card = shown.page.inner_text("#positive-list li")
        sample = shown.page.inner_text("#sample-list")
    assert "positive: defect" in card
    assert "0.310" in card
    assert "most probable: ok" in card
    assert "negative: defect" in sample
    assert "0.040" in sample


def test_without_a_threshold_the_least_sure_come_first(tmp_path: Path) -> None:
    output = str(tmp_path)
    night = [row | {"decision": None} for row in rows(200)]
    publish_night(output, night)
    with opened(report(ReportConfig(output))["page"]) as shown:
        values = shown.page.eval_on_selector_all(
            "#unsure-list li", "all => all.map(e => Number(e.dataset.probability))"
        )
    assert len(values) == 60
    assert values == sorted(values)
    probabilities = sorted(row["calibrated_prob"] for row in night if row["status"] == "ok")
    assert values[-1] == pytest.approx(probabilities[59], abs=1e-3)


def test_trends_show_the_nights_before(tmp_path: Path) -> None:
    output = str(tmp_path)
    for day in (21, 22, 23, 24):
        publish_night(output, rows(100 * (day - 20)), run_id=f"nightly-2026-11-{day}", day=day)
        report(ReportConfig(output))
    with opened(Run(output, "nightly-2026-11-24").page("report.html")) as shown:
        words = shown.page.get_attribute("#numbers table svg", "aria-label")
        assert words.startswith("last nights: ")
        assert len(words.split(",")) == 4
        assert "last 4 runs" in shown.page.inner_text("#numbers")


def test_carried_columns_are_counted_as_slices_unless_they_tell_images_apart(
    tmp_path: Path,
) -> None:
    night = [row_of(number, line=f"line {number % 3}", serial=str(number)) for number in range(300)]
    extra = (pa.field("line", pa.string()), pa.field("serial", pa.string()))
    publish_night(str(tmp_path), night, extra=extra)
    with opened(report(ReportConfig(str(tmp_path)))["page"]) as shown:
        titles = shown.page.locator("#numbers caption").all_inner_texts()
        table = shown.page.locator("#numbers table", has_text="By line").inner_text()
    assert "By line" in titles
    assert "By serial" not in titles
    num_positive = sum(row["decision"] == "positive" and row["line"] == "line 1" for row in night)
    assert [line.split() for line in table.splitlines() if line.startswith("line 1")] == [
        ["line", "1", "100", "33.3", "%", str(num_positive)]
    ]


def test_the_page_says_what_the_card_of_its_model_says(tmp_path: Path) -> None:
    verdict = {"answer": "better", "lines": ["Verdict: better than guessing.", "Found: 9 of 10."]}
    bundle = replace(make_bundle(), verdict=verdict)
    model = register(str(tmp_path / "registry"), "m", bundle)
    publish_night(str(tmp_path / "out"), rows(20), model_uri=model.uri)
    with opened(report(ReportConfig(str(tmp_path / "out")))["page"]) as shown:
        assert shown.page.locator("#model p").all_inner_texts() == verdict["lines"]
    publish_night(str(tmp_path / "gone"), rows(20))
    with opened(report(ReportConfig(str(tmp_path / "gone")))["page"]) as shown:
        assert "/nowhere/strips/v4" in shown.page.inner_text("#model")


def test_a_full_disk_leaves_no_half_page_and_the_next_start_makes_it(tmp_path: Path) -> None:
    output = str(tmp_path)
    publish_night(output, rows(300))
    code = (
        "import resource, signal, sys\n"
        "from imgcls.report.make import make_missing_pages\n"
        "from imgcls.runs.published import list_published\n"
        "if sys.argv[2] == 'full':\n"
        "    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))\n"
        "print(make_missing_pages(sys.argv[1], list(list_published(sys.argv[1]))))\n"
    )
    started = [
        subprocess.run(
            [sys.executable, "-c", code, output, disk], capture_output=True, text=True, check=False
        )
        for disk in ("full", "free")
    ]
    full, free = started
    assert full.returncode != 0
    assert "report.html" in full.stderr or "too large" in full.stderr.lower(), full.stderr
    assert free.returncode == 0, free.stderr
    page = Path(Run(output, "nightly-2026-11-24").page("report.html"))
    assert free.stdout.split() == [str(page)]
    assert page.read_text().rstrip().endswith("</html>")
    left = {path.suffix for path in page.parent.iterdir()}
    assert left == {".html", ".csv"}, "no half file stays"


def test_a_page_is_printed_to_paper(tmp_path: Path) -> None:
    publish_night(str(tmp_path / "out"), rows(600))
    made = report(ReportConfig(str(tmp_path / "out")))
    paper = tmp_path / "page.pdf"
    with opened(made["page"]) as shown:
        num_cards = shown.page.locator("li.card").count()
        shown.page.emulate_media(media="print")
        assert not shown.page.is_visible("form.tools")
        wide = "document.documentElement.scrollWidth > document.documentElement.clientWidth"
        assert not shown.page.evaluate(wide)
        shown.page.pdf(path=str(paper), format="A4", print_background=True)
    data = paper.read_bytes()
    assert data.startswith(b"%PDF-")
    num_pages = data.count(b"/Type /Page\n") or data.count(b"/Type /Page")
    assert 2 <= num_pages <= num_cards / 8, "several cards share a sheet"


def test_several_nights_are_one_page(tmp_path: Path) -> None:
    output = str(tmp_path)
    for day, count in ((22, 100), (23, 200), (24, 300)):
        publish_night(output, rows(count), run_id=f"nightly-2026-11-{day}", day=day)
    made = report(ReportConfig(output, last=2))
    assert made["page"] == str(tmp_path / "_pages" / "nights.html")
    night = [*rows(200), *rows(300)]
    num_positive = sum(row["decision"] == "positive" for row in night)
    for width in (1280, 390):
        with opened(made["page"], width=width) as shown:
            assert shown.complaints == []
            assert sentence(shown.page).startswith("500 images")
            assert f"{num_positive} positive" in sentence(shown.page)
            lines = shown.page.locator("#nights tbody tr").all_inner_texts()
            assert [line.split()[:2] for line in lines] == [
                ["2026-11-24", "nightly-2026-11-24"], ["2026-11-23", "nightly-2026-11-23"],
            ]  # fmt: skip
            first = shown.page.inner_text("#positive-list li:first-child")
            assert "2026-11-2" in first
            assert shown.page.locator("#positive-list img").count() == num_positive
            reached, expected = shown.walk()
            assert reached == expected, "the table that scrolls, too"
    with opened(made["page"], bypass_csp=True) as shown:
        assert shown.serious_findings() == []
    text = (tmp_path / "_pages" / "nights-positive.csv").read_text("utf-8-sig")
    listed = list(csv.DictReader(io.StringIO(text)))
    assert len(listed) == num_positive
    assert {row["run_id"] for row in listed} == {"nightly-2026-11-23", "nightly-2026-11-24"}
    with pytest.raises(ConfigError, match="--run-id"):
        report(ReportConfig(output, run_id="nightly-2026-11-24", last=2))
    with pytest.raises(ConfigError, match="has no units"):
        report(ReportConfig(output, unit=True))


def test_a_large_night_makes_a_small_page(tmp_path: Path) -> None:
    output = str(tmp_path)
    publish_night(output, rows(20_000), with_pictures=False)
    made = report(ReportConfig(output))
    assert Path(made["page"]).stat().st_size < 10e6
    with opened(made["page"]) as shown:
        assert shown.complaints == []
        assert sentence(shown.page).startswith("20,000 images")
        assert "positive.csv beside this page has all" in shown.page.inner_text("#positive")
