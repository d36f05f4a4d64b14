"""Labelled data for a model that exists: read as its training read its own.

In: the flags, a bundle. Out: a Dataset with the classes of the model. Invariant: of the data that
the model was trained on, every image is on the side it was on then.
"""

from imgcls.config.models import CalibrateConfig, EvaluateConfig
from imgcls.config.training import TrainConfig
from imgcls.data.dataset import Dataset, read_dataset
from imgcls.data.label_manifest import Roles
from imgcls.data.rows import is_list
from imgcls.data.splits.draw import read_moved
from imgcls.errors import ConfigError
from imgcls.model.bundle import Bundle


def read_labelled(
    config: EvaluateConfig | CalibrateConfig, bundle: Bundle, *, whole: bool
) -> Dataset:
    """Read DATA with the shares and the seed of the training, so that its splits come back.

    Args:
        config: Names the data.
        bundle: The model, whose classes they are.
        whole: Every image is wanted, whichever split it was on.
    """
    trained = bundle.training.get("config", {})
    learnt = trained.get("unit", "")
    unit = config.unit or learnt
    if learnt and unit != learnt and not whole:
        raise ConfigError(
            f"--unit {unit}: the model learnt units by {learnt}, and its splits keep those whole. "
            f"Take --unit {learnt}, or data that it has not seen, with evaluate --split all"
        )
    return read_dataset(
        config.data,
        val_fraction=0.0 if whole else trained.get("val_fraction", TrainConfig.val_fraction),
        test_fraction=0.0 if whole else trained.get("test_fraction", TrainConfig.test_fraction),
        seed=trained.get("seed", TrainConfig.seed),
        known=lambda: None if whole else read_moved(bundle.attachments),
        class_names=bundle.class_names,
        roles=Roles.parse(
            group=config.group or trained.get("group", ""),
            slice_by=config.slice_by,
            label=config.label or trained.get("label", ""),
            unit=unit,
            needs_group=bool(config.group),
            needs_unit=bool(config.unit),
        ),
        options=config,
        may_lack_labels=True,
        multi_label=bundle.multi_label,
        group_by_folder=trained.get("group_by") == "folder" and not is_list(config.data, config),
        keeps_units=bool(learnt),
    )
