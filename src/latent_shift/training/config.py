"""What a training recipe may say. Every field has a default where one makes sense; an unknown key is an error."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, model_validator

from latent_shift.core.config import Config
from latent_shift.core.errors import InputError
from latent_shift.core.shapes import check_divisible, check_interval
from latent_shift.data.config import ClipConfig

_Decay = Annotated[float, Field(ge=0, lt=1)]


class DataConfig(ClipConfig):
    """Where the clips come from, and what is cut out of them.

    With a cache each video gives one clip, encoded once. Without, videos are decoded anew each time, at another moment,
    and encoded on the training device; the image stage then sees a frame of any moment, whatever `num_frames` says.
    """

    source: str
    """Captioned video: a path, or `kind:path?option=value` (see `latent_shift.data.sources`). Of a video with several
    captions training takes the first every second time, and else any of them."""
    num_frames: int = Field(16, ge=1)
    """Frames of a clip, evenly spaced. In the autoencoder and image stages: of which single frames are drawn."""
    balance_by: str = ""
    """Metadata key whose values come equally often, for example "label"; empty for each record equally often."""
    cache: str = ""
    """Folder for encoded clips and captions; made when missing, named by content, so never stale. Empty for none."""


class ModelConfig(Config):
    """The networks: which are loaded and which are made."""

    autoencoder: str = ""
    """Folder of a trained autoencoder (image stage; in the video stage, or with `init`, instead of that of `init`)."""
    text_encoder: str = ""
    """Folder with `text_encoder/` and `tokenizer/`, as a pipeline has them (image stage)."""
    init: str = ""
    """Folder of the pipeline to start from (video stage: the text-to-image model). Autoencoder stage: folder of a
    trained autoencoder; its decoder alone goes on learning, so its latents, and what was trained on them, stay."""
    video: Literal["shift", "vdm"] = "shift"
    """What mixes the frames: the temporal shift, or the temporal attention of the paper's baseline, Latent-VDM."""
    max_tokens: int = Field(24, ge=2)
    """Caption length in tokens; longer captions are cut."""
    arguments: dict[str, Any] = Field(default_factory=dict)
    """Arguments of the network that this stage makes: `PatchAutoencoderKL` or the U-Net."""


class _Finite(Config):
    """A table whose numbers are finite."""

    model_config = ConfigDict(allow_inf_nan=False)


class LoraConfig(_Finite):
    """Low-rank finetuning (arXiv:2106.09685) instead of all weights (extra `lora`)."""

    rank: int = Field(0, ge=0)
    """Rank of the updates; 0 trains all weights."""
    alpha: float = Field(16.0, gt=0)
    """The update's scale is alpha / rank."""
    target_modules: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0", "conv1", "conv2")
    """Ends of the names of the layers that learn. The convolutions are where shifted features meet."""
    init: str = ""
    """File of updates to go on from, of the same rank, alpha and layers; they start from zero where it is empty."""


class OptimizerConfig(_Finite):
    """Adam with linear warm-up, a constant part and a fall to zero."""

    name: Literal["adamw", "adam", "adamw8bit"] = "adamw"
    """AdamW, Adam (weight decay is then part of the gradient), or AdamW with 8-bit state (extra `adam8bit`)."""
    learning_rate: float = Field(2e-4, gt=0)
    """Peak learning rate."""
    betas: tuple[_Decay, _Decay] = (0.9, 0.99)
    """Decay rates of the two moments."""
    weight_decay: float = Field(0.01, ge=0)
    """Weight decay."""
    warmup_steps: int = Field(100, ge=0)
    """Steps from zero to the peak."""
    lr_scheduler: Literal["constant", "linear", "cosine"] = "linear"
    """How the rate falls at the end; "constant" does not."""
    decay_fraction: float = Field(0.4, ge=0, le=1)
    """Share of all steps, at the end, over which the rate falls to zero."""
    max_grad_norm: float = Field(1.0, gt=0, allow_inf_nan=True)
    """Gradients are clipped to this norm; inf clips none."""
    ema_decay: float = Field(0.9995, ge=0, lt=1)
    """The average's decay is min(ema_decay, (step + 1) / (step + 10)); the paper's is 0.9999."""


class AutoencoderLossConfig(_Finite):
    """L1 + image gradients + KL."""

    gradient_weight: float = Field(1.0, ge=0)
    """Weight of the L1 loss of horizontal and vertical differences of neighbouring pixels."""
    kl_weight: float = Field(1e-6, ge=0)
    """Weight of the KL divergence to a unit Gaussian, summed over a latent picture."""
    latent_noise: float = Field(0.0, ge=0)
    """Noise is added to the latents before they are decoded, of a standard deviation drawn uniformly from 0 to this for
    each picture, in units of the latents' own: the decoder then forgives what a denoiser leaves. Needs `model.init`,
    since latents that still change have no unit."""
    crop: int = Field(64, ge=8, multiple_of=8)
    """Training works on random crops of this height and width; a multiple of the autoencoder's factor."""


class DiffusionConfig(_Finite):
    """The noise process and its loss (Eqs. 1, 2, 4, 5; Table 6). The defaults are the paper's.

    What a recipe does not say of the process (the first six fields) is that of `model.init`, where there is one.
    """

    num_train_timesteps: int = Field(1000, ge=2)
    """T."""
    beta_start: float = Field(8.5e-4, gt=0, lt=1)
    """First beta."""
    beta_end: float = Field(1.2e-2, gt=0, lt=1)
    """Last beta."""
    beta_schedule: Literal["scaled_linear", "linear", "squaredcos_cap_v2"] = "scaled_linear"
    """Linear in sqrt(beta) ("quad" in Table 6), linear in beta, or the cosine of arXiv:2102.09672."""
    prediction_type: Literal["epsilon", "v_prediction"] = "epsilon"
    """What the network predicts."""
    zero_terminal_snr: bool = False
    """Rescales the betas so that the last step is pure noise (arXiv:2305.08891); needs v_prediction."""
    min_snr_gamma: float | None = Field(None, gt=0)
    """Weights a step's loss by min(SNR, gamma) (arXiv:2303.09556); none for the paper's plain MSE. With
    `zero_terminal_snr` the last timestep, whose SNR is 0, then weighs nothing."""
    timestep_shift: float = Field(1.0, gt=0)
    """Above 1, training sees noisy timesteps more often, where content and motion are decided; 1 is uniform, the paper
    (arXiv:2403.03206, Eq. 23)."""
    motion_weight: float = Field(1.0, gt=0)
    """Video stage: weight of the error that differs from frame to frame, against the error that all frames of a clip
    have in common; 1 is the paper's plain MSE."""
    caption_dropout: float = Field(0.1, ge=0, le=1)
    """Share of samples trained with the empty caption, for classifier-free guidance."""
    text_noise: float = Field(0.0, ge=0)
    """The most noise that is added to a caption's text features, in units of their root mean square; how much is drawn
    anew each time, from 0 on. So near sentences are taken for each other, also those that no caption has."""
    image_share: float = Field(0.0, ge=0, le=1)
    """Share of steps that train on still pictures: in the video stage as one-frame videos; in the image stage the other
    steps see single frames of clips. Data without stills, or without clips, has no choice."""
    joint_images: bool = False
    """Video stage: every step learns from clips and from stills (`batch_size` and `image_batch_size` of them), whose
    mean losses weigh 1 - `image_share` and `image_share`; without, a step is of one kind."""
    circular_share: float = Field(0.0, ge=0, le=1)
    """Video stage: share of steps whose shift wraps around, for seamless loops (and for stills is the identity)."""
    random_phase: bool = False
    """Video stage: each clip starts at a random frame of its loop; only for endless loops."""

    @model_validator(mode="after")
    def _check(self) -> DiffusionConfig:
        if self.beta_start > self.beta_end:
            raise InputError("beta_start", self.beta_start, f"be at most beta_end, {self.beta_end:g}")
        if self.zero_terminal_snr and self.prediction_type != "v_prediction":
            raise InputError("prediction_type", self.prediction_type, "be v_prediction with zero_terminal_snr")
        if self.joint_images and not 0 < self.image_share < 1:
            raise InputError("image_share", self.image_share, "be between 0 and 1 with joint_images")
        return self


class DistillationConfig(_Finite):
    """A student of few steps, without guidance, instead of a model of data (`latent_shift.training.distillation`).

    It learns from captions alone: without `data.cache`, whose captions come with clips, no video is read.
    """

    steps: int = Field(0, ge=0)
    """The student's steps; 0 trains on data as the paper does."""
    teacher_steps: int = Field(3, ge=1)
    """Guided steps that the teacher takes for one of the student."""
    guidance_scale: float | None = Field(None, ge=0)
    """The teacher's; its model's own where it is not given."""


class PreviewConfig(_Finite):
    """Samples with fixed seeds, made by the pipeline that users run."""

    every: int = Field(1000, ge=1)
    """Steps between previews; there is one at the end, too."""
    prompts: tuple[str, ...] = ()
    """What is drawn; nothing is, where empty. The autoencoder stage shows reconstructions instead."""
    num_inference_steps: int | None = Field(None, ge=1)
    """Denoising steps; the pipeline's usual number where it is not given."""
    guidance_scale: float = Field(4.0, ge=0)
    """Classifier-free guidance; the model's own from then on."""
    motion_guidance: float = Field(1.0, ge=0, le=1)
    """The share of it that acts on what differs between the frames; the model's own from then on."""
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    """Shares of the steps where it starts and stops; the model's own from then on."""
    noise_correlation: float | None = Field(None, ge=0, lt=1)
    """Of the first step's noise, the model's own from then on; as in training where it is not given."""
    seam_frames: int | None = Field(None, ge=1)
    """Of loops, the model's own from then on: so many frames at each end see it closed. Where it is not given: all,
    or in a distillation as many as its teacher's."""

    @model_validator(mode="after")
    def _check(self) -> PreviewConfig:
        check_interval("guidance_interval", self.guidance_interval)
        return self


class Recipe(Config):
    """One training run."""

    stage: Literal["autoencoder", "image", "video"]
    """Which part of the paper's road this is."""
    output: str
    """The run's folder: checkpoints, log, curve, previews, and the model at the end."""
    seed: int = 0
    """All randomness follows from it."""
    steps: int = Field(ge=1)
    """Optimiser steps."""
    batch_size: int = Field(ge=1)
    """Pictures a step (autoencoder, image), or clips a step (video), over all processes."""
    image_batch_size: int = Field(64, ge=1)
    """Video stage: still pictures in a step that has some."""
    micro_batch_size: int | None = Field(None, ge=1)
    """At most so many rows of a batch at once in one process: gradients are accumulated, memory is saved."""
    gradient_checkpointing: bool = False
    """Image and video stage: the backward pass computes features again instead of keeping them; saves memory."""
    workers: int | None = Field(None, ge=0)
    """Processes that read and draw batches ahead, for each training process; none for 0 on a CPU and 4 on a GPU."""
    device: str = "auto"
    """"auto" is CUDA where there is a GPU, MPS on a Mac, else the CPU."""
    precision: Literal["bf16", "fp16", "fp32"] = "bf16"
    """Arithmetic of the forward and backward pass; weights and optimiser are fp32. With fp16 the loss is scaled."""
    export_dtype: Literal["fp16", "fp32"] = "fp16"
    """Image and video stage: of the networks of the model at the end; checkpoints are fp32, whatever this is."""
    compile: bool = False
    """Whether the U-Net is compiled (`torch.compile`) before it is trained, once for each shape of a batch: minutes at
    the start, for faster steps on a GPU."""
    checkpoint_minutes: float = Field(5.0, gt=0)
    """Minutes between checkpoints. When they are written changes nothing in the result."""
    keep_checkpoints: int = Field(2, ge=1)
    """How many of the newest checkpoints stay."""
    keep_every: int | None = Field(None, ge=1)
    """A checkpoint is also written at every multiple of so many steps, and stays."""
    log_every: int = Field(20, ge=1)
    """Steps over which a logged loss is averaged."""
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ()
    """Where loss and learning rate go besides `log.jsonl` and `loss.png` (extras of the same names)."""
    data: DataConfig
    """See `DataConfig`."""
    model: ModelConfig = ModelConfig()
    """See `ModelConfig`."""
    lora: LoraConfig = LoraConfig()
    """See `LoraConfig`; image and video stage."""
    optimizer: OptimizerConfig = OptimizerConfig()
    """See `OptimizerConfig`."""
    autoencoder_loss: AutoencoderLossConfig = AutoencoderLossConfig()
    """See `AutoencoderLossConfig`."""
    diffusion: DiffusionConfig = DiffusionConfig()
    """See `DiffusionConfig`."""
    distillation: DistillationConfig = DistillationConfig()
    """See `DistillationConfig`; video stage."""
    preview: PreviewConfig = PreviewConfig()
    """See `PreviewConfig`."""

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        self._check_stage()
        for table, why in self.unused():
            for key, value in _given(self, table):
                raise InputError(key, value, f"be left out: it changes nothing {why}")
        return self

    def _check_stage(self) -> None:
        data, model, preview, most = self.data, self.model, self.preview, self.diffusion.num_train_timesteps
        if self.stage == "autoencoder":
            options = self.autoencoder_loss
            if not data.cache:
                raise InputError("data.cache", "", "be a folder for decoded frames, which the autoencoder stage needs")
            if options.crop > data.size:
                raise InputError("autoencoder_loss.crop", options.crop, f"be at most data.size, {data.size}")
            if options.latent_noise and not model.init:
                expected = "be 0 without model.init, whose latents are its unit"
                raise InputError("autoencoder_loss.latent_noise", options.latent_noise, expected)
            check_divisible("data.size", data.size, 8)  # the autoencoder's factor
        if self.stage == "image" and not model.init:
            for name in ("autoencoder", "text_encoder"):
                if not getattr(model, name):
                    raise InputError(f"model.{name}", "", "be given in the image stage, or model.init for all parts")
        if self.stage == "video" and not model.init:
            raise InputError("model.init", "", "be a text-to-image model, from which the video stage starts")
        if preview.num_inference_steps is not None and preview.num_inference_steps > most:
            expected = f"be at most diffusion.num_train_timesteps, {most}"
            raise InputError("preview.num_inference_steps", preview.num_inference_steps, expected)
        if self.stage == "video":
            if data.duration_s != "whole" and not 0.01 <= data.num_frames / data.duration_s <= 1000:
                expected = f"give {data.num_frames} frames a rate of 0.01 to 1000 a second"
                raise InputError("data.duration_s", data.duration_s, expected)
            if data.num_frames < 2:
                raise InputError("data.num_frames", data.num_frames, "be 2 or more in the video stage")
        self._check_distillation()

    def _check_distillation(self) -> None:
        steps = self.distillation.steps
        if not steps:
            return
        if self.stage != "video":
            raise InputError("distillation.steps", steps, "be 0 but in the video stage")
        for name, wanted in (("num_inference_steps", steps), ("guidance_scale", 1)):
            if getattr(self.preview, name) != wanted:
                expected = f"be {wanted}: so a student of {steps} steps is sampled"
                raise InputError(f"preview.{name}", getattr(self.preview, name), expected)

    def unused(self) -> Iterator[tuple[str, str]]:
        """What this run never looks at: dotted keys of fields or of whole tables, and for which runs that is so."""
        for key in _UNUSED[self.stage]:
            yield key, f"in the {self.stage} stage"
        if self.model.init and self.stage == "image":
            yield from (
                (key, "with model.init, which has its own") for key in ("model.text_encoder", "model.max_tokens")
            )
        if self.model.init and self.stage == "autoencoder":
            yield "model.arguments", "with model.init, whose network goes on learning"
            yield "autoencoder_loss.kl_weight", "with model.init, whose encoder stays as it is"
        if self.stage == "video" and not self.diffusion.image_share:
            yield "image_batch_size", "without diffusion.image_share"
        if self.optimizer.lr_scheduler == "constant":
            yield "optimizer.decay_fraction", "with a constant optimizer.lr_scheduler"
        if self.distillation.steps:
            yield from ((f"diffusion.{name}", "in a distillation") for name in ("min_snr_gamma", "random_phase"))
        for table, decider in (("distillation", "steps"), ("lora", "rank")):
            options = getattr(self, table)
            if not getattr(options, decider):
                others = [name for name in type(options).model_fields if name != decider]
                yield from ((f"{table}.{name}", f"without {table}.{decider}") for name in others)


_UNUSED: dict[str, tuple[str, ...]] = {
    "autoencoder": (
        *("image_batch_size", "gradient_checkpointing", "compile", "lora", "diffusion", "distillation", "export_dtype"),
        *("model.autoencoder", "model.text_encoder", "model.video", "model.max_tokens"),
        *("preview.prompts", "preview.num_inference_steps", "preview.guidance_scale"),
        *("preview.motion_guidance", "preview.guidance_interval", "preview.noise_correlation", "preview.seam_frames"),
    ),
    "image": (
        *("image_batch_size", "autoencoder_loss", "distillation"),
        *("diffusion.motion_weight", "diffusion.circular_share", "diffusion.random_phase", "diffusion.joint_images"),
        *("preview.motion_guidance", "preview.noise_correlation", "preview.seam_frames"),
    ),
    "video": ("autoencoder_loss", "model.text_encoder", "model.max_tokens"),
}


def _given(config: Config, key: str) -> Iterator[tuple[str, Any]]:
    """What was set of a field or a table, to other values than the defaults, which a saved recipe has: keys, values."""
    name, _, rest = key.partition(".")
    if name not in config.model_fields_set:
        return
    value = getattr(config, name)
    if isinstance(value, Config):
        for inner in (rest,) if rest else type(value).model_fields:
            yield from ((f"{name}.{below}", given) for below, given in _given(value, inner))
    elif value != type(config).model_fields[name].get_default(call_default_factory=True):
        yield name, value
