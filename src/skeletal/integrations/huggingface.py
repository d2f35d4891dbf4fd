"""A skeleton in Hugging Face's `Trainer`: a callback that attaches the mask and watches over it."""

from pathlib import Path
from typing import Any

from skeletal.core.extras import extra
from skeletal.core.masks.attach import Skeleton, skeletons_of
from skeletal.core.masks.mask import Mask

with extra("transformers"):
    from transformers import TrainerCallback
    from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR


class MaskCallback(TrainerCallback):
    """Holds pruned weights at exactly zero while a `transformers.Trainer` trains.

    The mask is attached when training begins, to the model and the optimizer that the Trainer has by then (restored
    from a checkpoint, or made by `model_init`), and detached when it ends; it stays attached if the model had a mask
    attached before, which this one replaces in its layers. Each checkpoint is checked and gets
    `mask.safetensors` beside the model's weights; at the end the model is checked once more, after
    `load_best_model_at_end`.

    Under data parallel training every process holds the mask for itself. FSDP and DeepSpeed, where a process has only a
    part of each weight, are not tested.

    Args:
        mask: found by `skeletal.prune` before, for example on `trainer.get_train_dataloader()`.

    Raises:
        MaskError: while training, if the mask belongs to another model or a pruned weight has moved.

    """

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self._skeleton: Skeleton | None = None
        self._stays = False

    def on_train_begin(self, args: Any, state: Any, control: Any, **of_trainer: Any) -> None:
        """Make the model a skeleton; a resumed optimizer forgets what it knew of pruned weights."""
        self._let_go()  # of a training that ended with an exception
        self._stays = bool(skeletons_of(of_trainer["model"]))
        self._skeleton = self.mask.attach(of_trainer["model"], of_trainer.get("optimizer"))

    def on_save(self, args: Any, state: Any, control: Any, **of_trainer: Any) -> None:
        """Check the model, and keep the mask beside its weights."""
        self.mask.check(of_trainer["model"])
        if state.is_world_process_zero and (place := _checkpoint(args, state)) is not None:
            self.mask.save(place / "mask.safetensors")

    def on_train_end(self, args: Any, state: Any, control: Any, **of_trainer: Any) -> None:
        """Check the model, and let go of it, unless it was a skeleton before; its zeros stay."""
        self.mask.check(of_trainer["model"])
        self._let_go()

    def _let_go(self) -> None:
        if self._skeleton is not None and not self._stays:
            self._skeleton.detach()
        self._skeleton = None


def _checkpoint(args: Any, state: Any) -> Path | None:
    """The folder of the checkpoint that has just been written; None if the Trainer has already made room for others.

    With `save_total_limit`, it deletes the new one first where an earlier training has left later ones.
    Each trial of a hyperparameter search has a folder of its own in `output_dir`, whose name the Trainer keeps to
    itself: there it is the newest of this step.
    """
    folder, name = Path(args.output_dir), f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
    if not state.is_hyper_param_search:
        return folder / name if (folder / name).is_dir() else None
    return max(folder.glob(f"**/{name}"), key=_written, default=None)


def _written(checkpoint: Path) -> int:
    """When; by the files, as writing one anew leaves the folder's time as it was."""
    return max((file.stat().st_mtime_ns for file in checkpoint.iterdir()), default=0)
