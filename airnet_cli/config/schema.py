"""What a preset may say: frozen pydantic models that refuse unknown keys.

Every value is stated in the preset files; there are no defaults here but for the settings on which
the paper is silent (they are off). Units are in the names. `workflows/build.py` turns a `Preset`
into a network, a loss, an optimizer and a loader. Importing this module does not load torch.
"""

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

VariantName = Literal[
    "baseline", "baseline_abp", "baseline_gc", "parallel_gc", "parallel_abp", "airnet_gc", "airnet"
]
"""The seven rows of Table 3."""

BackboneName = Literal[
    "resnet50_ibn", "resnet50_gc", "resnet50", "resnet18", "resnet18_ibn", "mobilenet_v2"
]

PrecisionName = Literal["fp32", "bf16", "fp16"]

ScheduleName = Literal["steps", "cosine"]

SelectionName = Literal["last", "val", "test"]
"""By what the epoch is chosen whose weights a run ends with."""

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1, le=1_000_000)]
NotNegative = Annotated[int, Field(ge=0, le=1_000_000)]
GroupSize = Annotated[int, Field(ge=2, le=10_000)]
Pixels = Annotated[int, Field(ge=32, le=4096)]
Processes = Annotated[int, Field(ge=0, le=1024)]
"""What is above is a mistake: it takes all memory, or never ends."""


class Section(BaseModel):
    """Shared by all parts of a preset: unknown keys are refused, values can't be changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Data(Section):
    """The data set and the size at which the network sees its images."""

    name: Annotated[str, Field(min_length=1)]
    """A data set prepared under the data root, by `airnet prepare-data`."""
    height_px: Pixels
    width_px: Pixels


class Model(Section):
    """The network (method: "Backbones", "Branches and heads")."""

    variant: VariantName
    backbone: BackboneName
    init: Annotated[str, Field(min_length=1)]
    """`imagenet`, `none`, or the path of a weights file (.safetensors, .pth)."""


class Erasing(Section):
    """Random erasing (Zhong et al. 2020): a patch becomes zero after normalisation."""

    probability: Probability
    area: tuple[Annotated[float, Field(gt=0, lt=1)], Annotated[float, Field(gt=0, lt=1)]]
    """Smallest and largest share of the image's area."""
    aspect: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]]
    """Smallest and largest height / width."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.area[0] > self.area[1] or self.aspect[0] > self.aspect[1]:
            given = f"area = {list(self.area)}, aspect = {list(self.aspect)}"
            raise ValueError(f"area and aspect are each [smallest, largest]; given: {given}")
        return self


class Training(Section):
    """Batches, losses, optimizer and schedule (paper 3.3 and 4.2)."""

    epochs: Positive
    identities_per_batch: GroupSize
    """P of the P x K batch."""
    images_per_identity: GroupSize
    """K of the P x K batch."""
    learning_rate: Annotated[float, Field(gt=0)]
    learning_rate_epochs: tuple[Positive, ...]
    """After so many finished epochs the rate is multiplied by the factor: once for each entry."""
    learning_rate_factor: Annotated[float, Field(gt=0, le=1)]
    weight_decay: Annotated[float, Field(ge=0)]
    """L2, as `torch.optim.Adam` has it."""
    schedule: ScheduleName = "steps"
    """`steps`: as the two values above say (the paper); `cosine`: down to 0 along half a cosine."""
    warmup_epochs: NotNegative = 0
    """The rate rises linearly for so many epochs; 0: it is whole from the start."""
    warmup_start: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the rate that the first epoch of a warm-up has."""
    clip_norm: Annotated[float, Field(ge=0)] = 0.0
    """Longer gradients (L2 over all parameters) are shortened to this length; 0: never."""
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Score and save an average of the weights, of which a step keeps this share; 0: none."""
    triplet_margin: Annotated[float, Field(ge=0)]
    """Of the cosine distance 1 - cos, which lies in 0-2."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]
    flip_probability: Probability
    pad_crop_px: NotNegative = 0
    """Shift each image by up to so many pixels each way, inside a frame of the mean colour."""
    erasing: Erasing
    precision: PrecisionName
    seed: Annotated[int, Field(ge=0, lt=2**32)]
    train_ids: NotNegative = 0
    """Train on so many of the data set's identities, drawn with the seed; 0: on all."""
    val_ids: NotNegative = 0
    """Hold so many training identities out, drawn with the seed, and choose the epoch by them."""
    workers: Processes
    """Processes that decode images; 0: this one does."""

    @model_validator(mode="after")
    def _epochs_ascend(self) -> Self:
        epochs = list(self.learning_rate_epochs)
        if epochs != sorted(set(epochs)):
            raise ValueError(f"learning_rate_epochs = {epochs}: must ascend, as in [40, 70]")
        return self

    @model_validator(mode="after")
    def _somebody_to_tell_apart(self) -> Self:
        if self.val_ids == 1:
            raise ValueError("val_ids = 1: must be 0, or 2 or more; one person is always found")
        return self

    @model_validator(mode="after")
    def _warmup_ends(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs = {self.warmup_epochs}: must be less than epochs = {self.epochs}"
            )
        return self


class Evaluation(Section):
    """When and how the run is scored on query and gallery (method: "Evaluation")."""

    every: NotNegative
    """Evaluate after each so many epochs; 0: only at the end."""
    batch_size: Positive
    normalize_heads: bool
    """Give each head's vector length 1 before they are concatenated (off: the paper)."""
    select: SelectionName = "last"
    """The run ends with the weights of the last epoch (the paper); of the best one on held-out
    people (where `val_ids` are given and nothing is said here); or of the best one on the test
    split, which is optimistic. Best by mAP, of the epochs that `every` evaluates."""
    camera_filter: bool = True
    """Ignore images by the query's own camera in a run's scores; off only for data of one camera,
    and `airnet evaluate` has --camera-filter and --no-camera-filter."""


class Preset(Section):
    """Everything that a training run is made of."""

    description: Annotated[str, Field(min_length=1)]
    """One line for `airnet presets`."""
    data: Data
    model: Model
    training: Training
    evaluation: Evaluation

    @model_validator(mode="after")
    def _has_something_to_select(self) -> Self:
        select = self.evaluation.select
        if select == "val" and not self.training.val_ids:
            raise ValueError(
                'evaluation.select = "val" needs people to select by: give training.val_ids too'
            )
        if select != "last" and not self.evaluation.every:
            raise ValueError(
                f'evaluation.select = "{select}" has one epoch to choose from, since '
                "evaluation.every = 0 evaluates the last one only: give it a number of epochs"
            )
        return self
