"""A model's probabilities of labelled images, by the way that `score` takes.

In: a bundle, samples. Out: probabilities, failures, and the backend that ran. Invariant: it is the
bundle's decode spec, the decoder pool, the predict stream and the backend that a night of so many
images would have here.

Shape legend: B image, K class.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

from imgcls.config.choices import Device, Precision
from imgcls.data.dataset import Sample
from imgcls.image.decoders.pool import Decoded, DecoderPool
from imgcls.inference.backends.demand import demand_of_run
from imgcls.inference.collect import Collected, collect
from imgcls.inference.decision_rule import DecisionRule
from imgcls.inference.device import num_cores_here
from imgcls.inference.pixel_check import check_pixels
from imgcls.inference.predictor import make_predictor
from imgcls.metrics.calibration import Calibration
from imgcls.metrics.outcomes import Outcomes
from imgcls.model.bundle import Bundle
from imgcls.progress import Progress
from imgcls.sources.located import access_to, in_reading_order, request_for


@dataclass(frozen=True)
class RunFlags:
    """The flags that say where and how a model runs."""

    device: Device
    precision: Precision
    batch_size: int
    num_decoders: int

    @classmethod
    def of(cls, config: Any) -> Self:  # noqa: ANN401  (any config that has these flags)
        """Take them from a config."""
        return cls(config.device, config.precision, config.batch_size, config.num_decoders)


@dataclass(frozen=True)
class Predicted:
    """What a model said of samples, and what ran it."""

    found: Collected
    backend: str
    precision: str

    def outcomes(
        self, samples: Sequence[Sample], bundle: Bundle, calibration: Calibration | None = None
    ) -> Outcomes:
        """Return what became of the samples.

        Args:
            samples: Those that were predicted.
            bundle: The model.
            calibration: Whose thresholds decide; by default the bundle's.
        """
        outcomes = Outcomes(bundle.multi_label)
        fitted = calibration if calibration is not None else bundle.fitted()
        rule = DecisionRule(bundle.class_names.names, fitted, bundle.multi_label)
        labels_B = rule.labels(self.found.probs_BK)
        for index, labels in zip(self.found.index_B.tolist(), labels_B, strict=True):
            sample = samples[index]
            group = sample.group or sample.unit or sample.uri
            outcomes.add_ok(sample.labels, labels, group, sample.slice_name)
        for failure in self.found.failures:
            outcomes.add_failure(samples[failure.index].uri, failure.status, failure.reason)
        return outcomes


def predict_samples(
    bundle: Bundle, samples: Sequence[Sample], flags: RunFlags, *, embedding: bool = False
) -> Predicted:
    """Predict every sample, and give what the network makes of it where `embedding` asks so."""
    num_cpus = num_cores_here()
    uris = [sample.uri for sample in samples]
    requests = in_reading_order(request_for(n, sample) for n, sample in enumerate(samples))
    access = access_to(samples)
    # Decoders start before torch has threads.
    with DecoderPool(
        bundle.decode_spec, bundle.preprocess_spec, flags.num_decoders or num_cpus
    ) as pool:
        demand = demand_of_run(
            device=flags.device,
            precision=flags.precision,
            batch_size=flags.batch_size,
            num_images=len(samples),
            num_cores=num_cpus,
            embedding=embedding,
        )
        check_pixels(bundle, pool)
        with (
            make_predictor(bundle, demand) as predictor,
            Progress("evaluating", len(samples), "images") as progress,
        ):

            def decoded() -> Iterator[Decoded]:
                for one in pool.decode_many(access.read(requests)):
                    yield one
                    progress.advance(1)

            found = collect(decoded(), predictor, uris)
        return Predicted(found, predictor.name, predictor.precision)
