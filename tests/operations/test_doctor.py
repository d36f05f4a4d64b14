import subprocess
import sys

from imgcls.config.operations import DoctorConfig
from imgcls.operations.doctor import doctor


def test_doctor_names_formats_syntaxes_devices_and_versions() -> None:
    report = doctor(DoctorConfig())
    for name in ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "GIF"):
        assert report["formats"][name].startswith("ok")
    assert report["dicom_transfer_syntaxes"]["RLE Lossless"] == "pydicom"
    assert report["dicom_transfer_syntaxes"]["JPEG Extended (Process 2 and 4)"] == "imagecodecs"
    assert report["packages"]["torch"].startswith("2.")
    assert "cores" in report["devices"]["cpu"]


def test_a_look_at_this_machine_loads_nothing_that_looks_through_labels() -> None:
    code = (
        "import sys; from imgcls.operations import doctor; "
        "print([name for name in ('torch', 'sklearn', 'imgcls.labelling') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
