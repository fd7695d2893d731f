"""The sections of a run's configuration: frozen pydantic models, one sentence of help for every key."""

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from maxlm.config.data import DataConfig, OnlineConfig, StageConfig
from maxlm.config.model import ModelConfig
from maxlm.config.section import Count, Decay, Fraction, Integer, Name, Real, Section, Tokens


class TrainConfig(Section):
    total_tokens: Tokens | None = Field(
        None, description="Slots to train on; null for the length of the mixture, larger extends it."
    )
    batch_tokens: Tokens = Field(description="Slots per optimizer step over all devices; a multiple of seq_len.")
    accumulate: Count = Field(1, description="Microbatches per optimizer step.")


class LossConfig(Section):
    z_loss: Real = Field(0.0, ge=0, description="Weight of the squared log-partition regulariser, in nats.")
    split: Literal["sequence", "vocabulary"] = Field(
        "sequence",
        description="What the logits are computed in parts of: the sequence, which is faster, or the vocabulary, which "
        "takes less memory (the output matrix and its gradient are never whole) for a fourth product with it.",
    )
    chunk: Count = Field(512, description="Positions per sequence whose logits exist at one time, by sequence.")
    block: Count = Field(8192, description="Tokens of the vocabulary whose logits exist at one time, by vocabulary.")


class MeshConfig(Section):
    pipeline: Integer = Field(1, description="Stages of consecutive layers; -1 for the devices left.")
    data: Integer = Field(1, description="Replicas of the parameters that share the batch; -1 for the devices left.")
    fsdp: Integer = Field(-1, description="Shards of the parameters that share the batch; -1 for the devices left.")
    context: Integer = Field(1, description="Shards of every sequence; -1 for the devices left.")
    expert: Integer = Field(
        1, description="Shards of the experts, which share the batch elsewhere; -1 for the devices left."
    )
    tensor: Integer = Field(1, description="Shards of heads, MLP and vocabulary; -1 for the devices left.")
    slices: Count = Field(
        1,
        description="TPU slices (or hosts with GPUs) that are joined by the data-centre network; their devices in all.",
    )
    dcn_axis: Literal["data", "pipeline"] = Field(
        "data", description="The axis that spans the slices over the data-centre network; a multiple of slices."
    )

    @property
    def axes(self) -> dict[str, int]:
        """Size of every axis in the order of the mesh; -1 for what is left."""
        return {name: getattr(self, name) for name in ("pipeline", "data", "fsdp", "context", "expert", "tensor")}

    @model_validator(mode="after")
    def _check(self) -> "MeshConfig":
        for name, size in self.axes.items():
            if size == 0 or size < -1:
                raise ValueError(f"{name} must be at least 1, or -1 for the devices left; found {size}")
        if sum(size == -1 for size in self.axes.values()) > 1:
            raise ValueError("at most one axis can be -1")
        return self


class PipelineConfig(Section):
    microbatches: Count = Field(
        1, description="Parts of a batch that are in the stages at one time; a multiple of mesh.pipeline."
    )
    repeats: Count = Field(
        1, description="Times that a microbatch goes round the stages, each holding as many groups of layers."
    )
    remat_stages: bool = Field(
        False,
        description="Keep one input per stage and microbatch instead of one per layer, for one more forward pass; "
        "repeats above 1 imply it.",
    )


class ParallelConfig(Section):
    zero: Literal[1, 3] = Field(
        3, description="What fsdp splits: 3 parameters, gradients and moments; 1 moments and gradients alone."
    )
    sequence: bool = Field(
        False, description="Split the residual stream and its norms over mesh.tensor, along the sequence."
    )
    context: Literal["all_gather", "ring"] = Field(
        "all_gather",
        description="How attention sees the whole sequence under mesh.context: keys and values are gathered, or passed "
        "round.",
    )
    exchange: Literal["auto", "padded", "ragged"] = Field(
        "auto",
        description="All-to-all over mesh.expert: ragged sends what there is (TPU, GPU), padded the worst case; auto "
        "chooses by device.",
    )
    exchange_pieces: Count = Field(
        1, description="Parts in which a device sends its tokens to the experts; divides the exchange's buffers."
    )


class PrecisionConfig(Section):
    params: Literal["float32", "bfloat16"] = Field("float32", description="Type of the stored parameters.")
    compute: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="Type of activations and matrix products; auto is float32 on CPU, bfloat16 elsewhere."
    )


# Activations that remat may keep by name; the model marks them with `checkpoint_name`.
SAVEABLE = ("latent", "query", "key", "value", "attention", "attention_out", "mlp_gate", "mlp_up")


class RematConfig(Section):
    policy: Literal["none", "dots", "full", "offload"] | tuple[Literal[SAVEABLE], ...] = Field(
        "full",
        description="What the backward pass recomputes: none of a layer, all but its matrix products and attention "
        "(dots), all of it (full), all of it from inputs that wait in the hosts' memory (offload), or all but named "
        f"tensors ({', '.join(SAVEABLE)}; latent is of models with model.latent). With none a pipeline keeps its "
        "weights once per tick.",
    )
    mlp_chunks: Count = Field(
        1,
        description="Parts of the sequence in which a dense MLP is computed and recomputed, so that its hidden layer "
        "exists for one part at a time; divides seq_len / mesh.context. It costs nothing where the policy keeps "
        "nothing of the MLP, and is for such policies alone.",
    )

    @model_validator(mode="after")
    def _check(self) -> "RematConfig":
        kept = (
            {"none", "dots"} & {self.policy}
            if isinstance(self.policy, str)
            else {*self.policy} & {"mlp_gate", "mlp_up"}
        )
        if self.mlp_chunks > 1 and kept:
            raise ValueError(
                f"mlp_chunks must be 1 with a policy that keeps the MLP's hidden layer, found {self.mlp_chunks} and "
                f"{', '.join(sorted(kept))}"
            )
        return self


class KernelsConfig(Section):
    attention: Literal["auto", "reference", "blocked", "splash", "flash", "cudnn"] = Field(
        "auto",
        description="Implementation of attention; auto takes the fastest one that honours the device, the masks and "
        "the shapes (maxlm/model/kernels.py says which honours what).",
    )


def _as_text(value: Any) -> Any:
    return str(value).lower() if isinstance(value, bool) else str(value) if isinstance(value, int | float) else value


OptionText = Annotated[str, BeforeValidator(_as_text)]


class CompilerConfig(Section):
    options: Literal["auto"] | dict[str, OptionText] = Field(
        "auto",
        description="XLA's options for the train step by name; auto takes those of the chip's table "
        "(maxlm/parallel/compiler.py).",
    )


class HardwareConfig(Section):
    name: str | None = Field(
        None, description="What plan plans for: a TPU slice such as v5p-128 or v6e-64, or GPUs such as h100x8."
    )
    price_per_chip_hour: Real | None = Field(
        None, gt=0, description="Price of a chip for an hour, in the currency of your choice, for plan's cost."
    )


class OptimizerConfig(Section):
    name: Literal["adamw", "muon"] = Field("adamw", description="muon takes the layers' matrices, AdamW the rest.")
    lr: Real = Field(3e-4, gt=0, description="Peak learning rate.")
    b1: Decay = Field(0.9, description="Decay of Adam's first moment per step.")
    b2: Decay = Field(0.95, description="Decay of Adam's second moment per step.")
    eps: Real = Field(1e-8, gt=0, description="Added to the root of Adam's second moment.")
    momentum: Decay = Field(0.95, description="Decay of Muon's momentum per step.")
    weight_decay: Real = Field(0.1, ge=0, description="Decoupled decay of matrices, times the learning rate.")
    clip_norm: Real | None = Field(1.0, gt=0, description="Largest global gradient norm; null for no clipping.")
    offload: Literal["host"] | None = Field(
        None,
        description="host keeps the moments, and the average, in the hosts' memory and brings them in for the update.",
    )
    ema: Decay | None = Field(
        None,
        description="Decay per step of an average of the parameters that is kept beside them, evaluated and saved; "
        "null for none.",
    )


class ScheduleConfig(Section):
    name: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd"] = Field(
        "cosine", description="Shape of the learning rate after warm-up, over tokens."
    )
    warmup_tokens: Annotated[Integer, Field(ge=0)] = Field(
        0, description="Linear warm-up from initial_ratio to the peak, in slots."
    )
    initial_ratio: Fraction = Field(
        0.0, description="Learning rate from which the warm-up rises as a share of the peak; above 0 to warm up again."
    )
    decay_tokens: Tokens | None = Field(
        None, description="Length of the final linear decay of wsd, in slots; null for a tenth of the run."
    )
    final_ratio: Fraction = Field(0.1, description="Last learning rate as a share of the peak.")

    @model_validator(mode="after")
    def _check(self) -> "ScheduleConfig":
        if self.name == "inverse_sqrt" and not self.warmup_tokens:
            raise ValueError("inverse_sqrt needs warmup_tokens above 0: the rate falls as sqrt(warmup_tokens / tokens)")
        if self.initial_ratio and not self.warmup_tokens:
            raise ValueError(
                f"initial_ratio needs warmup_tokens above 0, in which the rate rises; found {self.initial_ratio} and 0"
            )
        return self


class InitConfig(Section):
    path: str = Field(
        alias="from",
        description="Where the first parameters are: a run or one of its checkpoints, an imported model, or a Hugging "
        "Face folder.",
    )
    weights: Literal["params", "ema"] = Field(
        "params", description="The parameters there, or the average of them that a run with optimizer.ema kept."
    )
    vocabulary: Literal["same", "extended"] = Field(
        "same",
        description="Whether the tokenizer of the data is the model's own, or one that maxlm-prep's tokenizer.extend "
        "made of it.",
    )
    rows: Literal["pieces", "scaled_pieces", "mean", "random"] = Field(
        "pieces",
        description="How embedding and output of a new piece start in an extended vocabulary: as the mean of the rows "
        "of the old pieces that it replaces, as that mean made as small as a row at random (for a model that does not "
        "know those pieces), as the mean of all old rows, or at random as this run would.",
    )
    optimizer: Literal["fresh", "kept"] = Field(
        "fresh", description="Whether the moments start at zero, or as the run that from names left them."
    )

    @model_validator(mode="after")
    def _check(self) -> "InitConfig":
        if self.optimizer == "kept" and self.weights == "ema":
            raise ValueError("optimizer must be fresh with weights ema: the moments are those of the parameters")
        return self


class FaultsConfig(Section):
    window: Count = Field(128, description="Accepted steps that the spike test looks back on.")
    deviations: Real = Field(
        6.0,
        gt=0,
        description="Standard deviations above the window's mean at which a loss or gradient norm is a spike.",
    )
    max_skips: Count = Field(10, description="Skipped steps in a row after which the run rewinds or stops.")
    max_rewinds: Annotated[Integer, Field(ge=0)] = Field(
        2, description="Rewinds to the last checkpoint (skipping the span of data) before the run stops with exit 4."
    )


class CheckpointConfig(Section):
    every_minutes: Real | None = Field(20.0, gt=0, description="Minutes between temporary checkpoints; null for none.")
    every_steps: Count | None = Field(None, description="Steps between temporary checkpoints; null for none.")
    keep: Count = Field(2, description="Newest checkpoints kept.")
    keep_every_steps: Count | None = Field(5000, description="Steps between checkpoints that are kept for good.")


class TasksConfig(Section):
    names: tuple[str, ...] = Field(
        min_length=1, description="Tasks, groups or tags of lm-eval; * stands for anything in a name."
    )
    folder: str | None = Field(
        None, description="Directory with tasks of one's own, whose functions run here; null for lm-eval's alone."
    )
    every_steps: Count | None = Field(None, description="Steps between evaluations on them; null for eval.every_steps.")
    limit: Count | None = Field(None, description="Questions of each task, the first ones; null for all.")
    shots: Annotated[Integer, Field(ge=0)] | None = Field(
        None, description="Examples before a question; null for as many as each task says."
    )


class EvalConfig(Section):
    every_steps: Count | None = Field(1000, description="Steps between evaluations; null for the end alone.")
    sequences: Count | None = Field(512, description="Sequences per held-out source; null for all.")
    knowledge: dict[Name, str] = Field(
        {},
        description="Files of questions by name, asked at every evaluation (maxlm/evaluate/questions.py has the form).",
    )
    tasks: TasksConfig | None = Field(None, description="Tasks of lm-eval that the model is asked; null for none.")

    @property
    def task_steps(self) -> int | None:
        """Steps between evaluations on tasks."""
        return self.every_steps if self.tasks is None else self.tasks.every_steps or self.every_steps


class ProfileConfig(Section):
    start_step: Count = Field(description="First step of the xprof trace.")
    num_steps: Count = Field(3, description="Steps in the trace.")


class LoggingConfig(Section):
    every_steps: Count = Field(10, description="Steps between lines of metrics.jsonl.")
    tensorboard: bool = Field(True, description="Write TensorBoard files into the run directory.")
    profile: ProfileConfig | None = Field(None, description="Write an xprof trace into the run directory.")


class ProcessesConfig(Section):
    initialization_timeout_seconds: Count = Field(
        300, description="Seconds that a process waits at the start until all the others have come."
    )
    heartbeat_timeout_seconds: Count = Field(
        100, description="Seconds without a sign of life after which a process is taken for dead and the others end."
    )


class Config(Section):
    name: Name = Field(description="Name of the run; its directory is runs_dir/name.")
    seed: Annotated[Integer, Field(ge=0, lt=2**32)] = Field(
        0, description="Seed of the parameters and of the data order."
    )
    model: ModelConfig = Field(description="The decoder.")
    data: DataConfig = Field(description="Sources, mixture and reading.")
    train: TrainConfig = Field(description="Length of the run and size of a step.")
    loss: LossConfig = Field(LossConfig(), description="Cross-entropy.")
    mesh: MeshConfig = Field(MeshConfig(), description="Sizes of the device mesh.")
    pipeline: PipelineConfig = Field(PipelineConfig(), description="Schedule of the pipeline's stages.")
    parallel: ParallelConfig = Field(ParallelConfig(), description="How the mesh's axes are used.")
    precision: PrecisionConfig = Field(PrecisionConfig(), description="Number formats.")
    remat: RematConfig = Field(RematConfig(), description="Recomputation in the backward pass.")
    kernels: KernelsConfig = Field(KernelsConfig(), description="Implementations of what has several.")
    compiler: CompilerConfig = Field(CompilerConfig(), description="The compiler of the train step.")
    hardware: HardwareConfig = Field(HardwareConfig(), description="What plan plans for.")
    optimizer: OptimizerConfig = Field(OptimizerConfig(), description="Optimizer.")
    schedule: ScheduleConfig = Field(ScheduleConfig(), description="Learning rate over tokens.")
    init: InitConfig | None = Field(
        None, description="Parameters of another model to start from; null for this run's own random ones."
    )
    faults: FaultsConfig = Field(FaultsConfig(), description="What happens on spikes and values that are not finite.")
    checkpoint: CheckpointConfig = Field(CheckpointConfig(), description="Saving.")
    eval: EvalConfig = Field(EvalConfig(), description="Evaluation during training.")
    logging: LoggingConfig = Field(LoggingConfig(), description="Metrics.")
    processes: ProcessesConfig = Field(ProcessesConfig(), description="Several processes that train together.")
    runs_dir: str = Field("runs", description="Directory that holds the run directories.")

    @property
    def run_dir(self) -> Path:
        return Path(self.runs_dir) / self.name

    @property
    def batch_size(self) -> int:
        """Examples per optimizer step over all devices."""
        return self.train.batch_tokens // self.data.seq_len

    @property
    def total_tokens(self) -> int:
        """Length of the run in slots."""
        return self.train.total_tokens or sum(stage.tokens for stage in self.data.mixture)

    @property
    def made_for(self) -> int:
        """Longest sequence in tokens that the model is made for."""
        length = self.model.context_length or self.data.seq_len
        return min(length, self.model.learned_positions or length)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """(examples per step, tokens per example) of every stage, in order, each shape once."""
        return list(dict.fromkeys(self.shape_of(stage) for stage in self.data.mixture))

    def shape_of(self, stage: StageConfig) -> tuple[int, int]:
        """(examples per step, tokens per example) of a stage."""
        seq_len = stage.seq_len or self.data.seq_len
        return (stage.batch_tokens or self.train.batch_tokens) // seq_len, seq_len

    def with_shape(self, batch_size: int, seq_len: int) -> "Config":
        """The configuration of a run whose steps all have this shape."""
        data = self.data.model_copy(update={"seq_len": seq_len})
        train = self.train.model_copy(update={"batch_tokens": batch_size * seq_len})
        return self.model_copy(update={"data": data, "train": train})

    @model_validator(mode="after")
    def _check(self) -> "Config":
        self._check_shape("train.batch_tokens", "data.seq_len", self.train.batch_tokens, self.data.seq_len)
        for number, stage in enumerate(self.data.mixture):
            batch, seq_len = stage.batch_tokens or self.train.batch_tokens, stage.seq_len or self.data.seq_len
            names = [
                f"data.mixture[{number}].{key}" if getattr(stage, key) else f"{section}.{key}"
                for section, key in (("train", "batch_tokens"), ("data", "seq_len"))
            ]
            self._check_shape(*names, batch, seq_len)
        # The host reads the sums per source with the lines of the metrics alone.
        if isinstance(online := self.data.dynamic, OnlineConfig) and online.every_steps % self.logging.every_steps:
            raise ValueError(
                f"data.dynamic.every_steps must be a multiple of logging.every_steps, found {online.every_steps} and "
                f"{self.logging.every_steps}"
            )
        return self

    def _check_shape(self, batch_name: str, length_name: str, batch: int, seq_len: int) -> None:
        unit = seq_len * self.train.accumulate
        if batch % unit:
            raise ValueError(
                f"{batch_name} must be a multiple of {length_name} x train.accumulate = {seq_len} x "
                f"{self.train.accumulate} = {unit}, found {batch}; the nearest that works is "
                f"{max(1, round(batch / unit)) * unit}"
            )
        if (rows := self.model.learned_positions) is not None and seq_len > rows:
            raise ValueError(
                f"{length_name} must be at most model.learned_positions, found {seq_len} and {rows}; a longer sequence "
                "has no positions"
            )
        # Target tokens per source are summed in uint32 on the device between two log lines.
        if (found := batch * self.logging.every_steps) >= 2**32:
            raise ValueError(
                f"{batch_name} x logging.every_steps must be below 2^32, found {found}; "
                f"logging.every_steps of at most {max(1, (2**32 - 1) // batch)} works"
            )
