"""A tiny BERT in transformers' Trainer: masked weights stay zero, over checkpoints, too."""

import warnings
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import skeletal
from skeletal import Mask, MaskError
from tests.core.test_zoo import bert, sentences

transformers = pytest.importorskip("transformers")

from transformers.trainer_utils import HPSearchBackend  # noqa: E402

from skeletal.integrations.huggingface import MaskCallback  # noqa: E402


@pytest.fixture(autouse=True)
def others_warnings():
    with warnings.catch_warnings():
        for theirs in ("transformers", "accelerate", "torch"):
            warnings.filterwarnings("ignore", module=rf"{theirs}\..*")
        yield


def examples():
    """Twelve sentences, one a row."""
    return [{key: value[i] for key, value in batch.items()} for batch in sentences(labels=3) for i in range(4)]


def model_of(seed=0):
    torch.manual_seed(seed)
    return bert()


def trainer_of(folder, model=None, **settings):
    settings = dict(max_steps=6, save_steps=2, learning_rate=0.05, weight_decay=0.1) | settings
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, use_cpu=True, report_to="none", disable_tqdm=True,
        logging_strategy="no", **settings,
    )  # fmt: skip
    return transformers.Trainer(model=model or model_of(), args=arguments, train_dataset=examples())


def mask_of(trainer):
    return skeletal.prune(trainer.model, trainer.get_train_dataloader(), density=0.3, steps=3)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A training of six steps with checkpoints after 2, 4 and 6, and its mask."""
    folder = tmp_path_factory.mktemp("trainer")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = trainer_of(folder)
        mask = mask_of(trainer)
        trainer.add_callback(MaskCallback(mask))
        trainer.train()
    return folder, trainer, mask


def test_pruned_weights_are_zero_and_kept_ones_have_learned(finished):
    _, trainer, mask = finished
    before, after = model_of().state_dict(), trainer.model.state_dict()
    for name, keep in mask.items():
        assert not after[name][~keep].any(), name
    assert any(not torch.equal(before[name][keep], after[name][keep]) for name, keep in mask.items())
    assert mask.kept == round(0.3 * mask.total)


def test_every_checkpoint_is_sparse_and_has_its_mask(finished):
    folder, _, mask = finished
    for step in (2, 4, 6):
        place = folder / f"checkpoint-{step}"
        assert Mask.load(place / "mask.safetensors") == mask
        weights = load_file(place / "model.safetensors")
        assert all(not weights[name][~keep].any() for name, keep in mask.items())


def test_resumed_it_ends_in_the_same_weights(finished, tmp_path):
    folder, whole, mask = finished
    resumed = trainer_of(tmp_path, model_of(seed=1))  # other weights, which the checkpoint replaces
    resumed.add_callback(MaskCallback(mask))
    resumed.train(resume_from_checkpoint=str(folder / "checkpoint-4"))
    for name, weight in whole.model.state_dict().items():
        assert torch.equal(weight, resumed.model.state_dict()[name]), name


def test_a_dense_checkpoint_with_its_momentum_goes_on_as_a_skeleton(tmp_path):
    dense = trainer_of(tmp_path / "dense", max_steps=2)
    dense.train()
    trainer = trainer_of(tmp_path / "sparse")
    mask = mask_of(trainer)
    trainer.add_callback(MaskCallback(mask))
    trainer.train(resume_from_checkpoint=str(tmp_path / "dense" / "checkpoint-2"))
    mask.check(trainer.model)
    state = trainer.optimizer.state
    parameters = dict(trainer.model.named_parameters())
    assert all(not state[parameters[name]]["exp_avg"][~keep].any() for name, keep in mask.items())


def test_a_model_made_by_the_trainer_and_the_best_one_of_all(tmp_path):
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path), per_device_train_batch_size=4, use_cpu=True, report_to="none", disable_tqdm=True,
        logging_strategy="no", max_steps=4, save_steps=2, eval_strategy="steps", eval_steps=2, learning_rate=0.05,
        load_best_model_at_end=True, metric_for_best_model="eval_loss",
    )  # fmt: skip
    trainer = transformers.Trainer(
        model_init=lambda: model_of(), args=arguments, train_dataset=examples(), eval_dataset=examples()
    )
    mask = mask_of(trainer)
    trainer.add_callback(MaskCallback(mask))
    trainer.train()
    mask.check(trainer.model)
    assert trainer.state.best_model_checkpoint is not None
    best = load_file(f"{trainer.state.best_model_checkpoint}/model.safetensors")
    assert all(torch.equal(weight, best[name]) for name, weight in trainer.model.state_dict().items() if name in mask)


def test_in_a_search_every_trial_has_its_masks(tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.hp_params", lambda trial: trial.params)  # knows optuna's alone
    (tmp_path / "checkpoint-2").mkdir()  # of an earlier training
    (tmp_path / "checkpoint-2" / "model.safetensors").touch()
    for number in (0, 1):
        trainer = trainer_of(tmp_path, max_steps=2)
        trainer.hp_search_backend, trainer.hp_space = HPSearchBackend.OPTUNA, lambda trial: {}  # as its search does
        mask = mask_of(trainer)
        trainer.add_callback(MaskCallback(mask))
        trainer.train(trial=SimpleNamespace(number=number, params={}))
        assert Mask.load(tmp_path / f"run-{number}" / "checkpoint-2" / "mask.safetensors") == mask
        assert len(list(tmp_path.rglob("mask.safetensors"))) == number + 1


def test_a_checkpoint_that_the_trainer_deletes_at_once_is_left_out(tmp_path):
    for _ in range(2):  # the second time there are later ones, and the limit is one
        trainer = trainer_of(tmp_path, max_steps=4, save_total_limit=1)
        mask = mask_of(trainer)
        trainer.add_callback(MaskCallback(mask))
        trainer.train()
        mask.check(trainer.model)
        (left,) = tmp_path.glob("checkpoint-*")
        assert Mask.load(left / "mask.safetensors") == mask


def test_it_lets_go_in_the_end(finished):
    _, trainer, mask = finished
    weight = trainer.model.get_parameter(next(iter(mask)))
    before = weight.detach().clone()
    with torch.no_grad():
        weight.add_(1)
    weight.grad = torch.zeros_like(weight)
    torch.optim.SGD([weight], lr=1.0).step()
    assert torch.equal(weight, before + 1) and not weight._backward_hooks
    with torch.no_grad():
        weight.copy_(before)  # the others look at this model, too


@pytest.mark.parametrize("interrupted", [False, True])
def test_a_model_that_was_a_skeleton_stays_one(tmp_path, interrupted):
    trainer = trainer_of(tmp_path, save_strategy="no", max_steps=1)
    mask = mask_of(trainer)
    mask.attach(trainer.model)
    trainer.add_callback(callback := MaskCallback(mask))
    if interrupted:
        callback.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
    trainer.train()
    for parameter in trainer.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(trainer.model.parameters(), lr=1.0).step()
    mask.check(trainer.model)


def test_without_the_callback_weights_move(tmp_path):
    trainer = trainer_of(tmp_path, save_strategy="no", max_steps=1)
    mask = mask_of(trainer)
    mask.attach(trainer.model).detach()
    trainer.train()
    with pytest.raises(MaskError):
        mask.check(trainer.model)


def test_a_mask_of_another_model_is_refused(tmp_path):
    trainer = trainer_of(tmp_path, save_strategy="no")
    trainer.add_callback(MaskCallback(Mask({"head.weight": torch.ones(3, 3)})))
    with pytest.raises(MaskError, match="another model"):
        trainer.train()
