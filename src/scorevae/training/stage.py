"""What the training stages share: data, device, state, curve file and tracking."""

import csv
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import Accelerator
from pydantic import BaseModel
from torch import nn

from scorevae.config import Config, TrainingConfig
from scorevae.data.arrays import load_split, to_tensor
from scorevae.data.batches import batches
from scorevae.networks.weights import Header, Trained, save_weights
from scorevae.objectives import Objective
from scorevae.randomness import derive_seed, global_seed, make_generator
from scorevae.runtime.arithmetic import chosen_precision
from scorevae.runtime.files import copy, replacing
from scorevae.runtime.memory import explaining_memory
from scorevae.runtime.processes import spread
from scorevae.runtime.state import StateFolder, code_of, resumable, state_folder, state_key
from scorevae.runtime.surroundings import check_surroundings
from scorevae.runtime.tracking import Tracker, track
from scorevae.shapes import Images, StoredImages
from scorevae.training.loop import fit

CURVE_SECONDS = 10.0  # the least time between two writings of the curve file
VALIDATION_IMAGES = 1000

# where the settings of each phase stand in a preset
SETTINGS = {
    "prior": "prior.training",
    "vae": "vae.training",
    "warm_start": "encoder.warm_start.training",
    "objective": "encoder.training",
    "corrector": "corrector.training",
    "diffusion_decoder": "diffusion_decoder.training",
}


class Curve:
    """The training curve as a CSV file: phase, step, and whatever is recorded; always whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._rows: list[dict[str, str | int | float]] = []
        self._written = 0.0

    def add(self, phase: str, step: int, numbers: dict[str, float]) -> None:
        """Append one row."""
        self._rows.append({"phase": phase, "step": step, **numbers})
        if time.monotonic() - self._written > CURVE_SECONDS:
            self.write()

    def write(self) -> None:
        """Replace the file by all rows so far."""
        columns = list(dict.fromkeys(name for row in self._rows for name in row))
        with replacing(self.path) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, columns or ["phase", "step"])
            writer.writeheader()
            writer.writerows(self._rows)
        self._written = time.monotonic()


@dataclass
class TrainingRun:
    """One training stage in progress."""

    stage: str
    config: Config
    train: StoredImages
    test: Images  # the first VALIDATION_IMAGES
    curve: Curve
    tracker: Tracker
    accelerator: Accelerator = field(default_factory=Accelerator)
    _state: StateFolder | None = field(default=None, init=False)

    @property
    def device(self) -> torch.device:
        """Where the networks are trained."""
        return self.accelerator.device

    @contextmanager
    def state(
        self, settings: Sequence[BaseModel | float | str], inputs: list[Path], *weights: Path
    ) -> Iterator[bool]:
        """Make :meth:`fit` resumable: what it trains follows from settings, inputs and code.

        Yields whether nothing is left to do: a former run had finished without DVC recording it,
        and its curve and weights are in their places again. Of several processes the main one
        holds the state for all.
        """
        seed, flip = self.config.seed, self.config.selected.flip
        key = state_key([seed, flip, *settings], [*inputs, *code_of(self.stage)])
        alone = self.accelerator.is_main_process
        held = resumable(self.stage, key) if alone else nullcontext(state_folder(self.stage, key))
        with held as self._state:
            self.accelerator.wait_for_everyone()  # the main one may have removed an old state
            outputs = [self.curve.path, *weights]
            copies = self._state.copies(outputs)
            self.accelerator.wait_for_everyone()  # it may remove this one once it has finished
            if not copies:
                self._state.outputs = outputs
            elif alone:
                for kept, path in copies.items():
                    copy(kept, path)
                self._record_again()
            yield bool(copies)
            if alone:
                self.tracker.artifact(self.curve.path)
                for path in weights:
                    self.tracker.weights("wrote", path)

    def _record_again(self) -> None:
        with self.curve.path.open(newline="") as file:
            for row in csv.DictReader(file):
                phase, step = row.pop("phase"), int(row.pop("step"))
                self.tracker.record(phase, step, {k: float(v) for k, v in row.items() if v})

    def build(self, construct: Callable[[], nn.Module]) -> nn.Module:
        """Construct a network on the device; its initial weights follow from the seed."""
        with global_seed(self.config.seed, self.stage, "weights"):
            return construct().to(self.device)

    def fit(
        self, network: nn.Module, objective: Objective, settings: TrainingConfig, phase: str
    ) -> nn.Module:
        """Train one network by :func:`scorevae.training.loop.fit` and return its average."""
        assert self._state is not None, "fit outside of state()"
        name = f"{self.stage}/{phase}"
        seed, flip = derive_seed(self.config.seed, name), self.config.selected.flip
        computed = chosen_precision(settings.precision, self.device)
        self.tracker.precision(phase, computed)
        share = self.accelerator.process_index, self.accelerator.num_processes
        keys = f"presets.{self.config.preset}.{SETTINGS[phase]}"
        remedy = f"lower {keys}.batch ({settings.batch})"
        if settings.precision != "bf16":
            remedy += f", or set {keys}.precision to bf16"

        def record(step: int, numbers: dict[str, float]) -> None:
            if self.accelerator.is_main_process:
                self.curve.add(phase, step, numbers)
                self.tracker.record(phase, step, numbers)

        with global_seed(self.config.seed, name), explaining_memory(remedy):
            images = batches(
                self.train, settings.batch, seed, flip=flip, device=self.device, share=share
            )
            return fit(
                network,
                objective,
                images,
                settings.model_copy(update={"precision": computed}),
                seed=self.config.seed,
                name=name,
                record=record,
                validate=lambda module: self._test_losses(module, objective, settings.batch),
                state=self._state.file(phase),
                accelerator=self.accelerator,
            )

    def _test_losses(
        self, module: nn.Module, objective: Objective, batch: int
    ) -> dict[str, float]:
        """Mean losses over test images, same noise every time; nothing is chosen by them."""
        generator = make_generator(self.device, self.config.seed, self.stage, "validation")
        sums: dict[str, float] = {}
        with torch.no_grad():
            for chunk in self.test.split(batch):
                for name, values in objective(module, chunk.to(self.device), generator).items():
                    sums[name] = sums.get(name, 0.0) + values.sum().item()
        return {f"test_{name}": total / len(self.test) for name, total in sums.items()}

    def save(self, path: Path, network: nn.Module, header: Header) -> None:
        """Write curve, then weights."""
        if self.accelerator.is_main_process:
            self.curve.write()
            save_weights(path, network, header)

    def save_folder(self, folder: Path, trained: Mapping[str, Trained]) -> None:
        """Write curve, then a folder with the weights of all, each ``<name>.safetensors``."""
        if not self.accelerator.is_main_process:
            return
        self.curve.write()
        with replacing(folder) as temporary:
            for name, (network, header) in trained.items():
                save_weights(temporary / f"{name}.safetensors", network, header)


@contextmanager
def training_stage(
    stage: str, config: Config, data: Path, curve: Path, reads: list[Path]
) -> Iterator[TrainingRun]:
    """Open a training stage; ``reads`` are the weights that it starts from.

    Where there are to be several processes, they run the stage, and this one ends with them.

    Raises:
        UserError: data are missing, or a variable of another tool would change the numbers.
    """
    check_surroundings()
    spread()
    image = config.selected.data.image
    train = load_split(data, "train", image).images
    test = to_tensor(load_split(data, "test", image, VALIDATION_IMAGES).images)
    with track(stage, config) as tracker:
        for path in reads:
            tracker.weights("read", path)
        run = TrainingRun(stage, config, train, test, Curve(curve), tracker)
        yield run
        if run.accelerator.num_processes > 1:
            run.accelerator.end_training()  # else torch warns at the exit
