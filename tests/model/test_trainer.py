import itertools
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import tinywan.train_vae as train_vae_module
import torch
from tinywan.batches import Phase
from tinywan.checkpoint import SHIPPED
from tinywan.errors import CheckpointError, ConfigError
from tinywan.motion import true_motion, warping_error
from tinywan.muon import orthogonalise
from tinywan.pipeline import TextToVideoPipeline
from tinywan.presets import preset
from tinywan.train_denoiser import DenoiserRecipe
from tinywan.train_vae import Crops, VAERecipe, train_vae, training_batch, vae_loss
from tinywan.trainer import Trainer, TrainerConfig
from tinywan.vae import CausalVAE
from torch import Tensor, nn

STEPS = TrainerConfig(steps=6, warmup=2, sample_every=4)
SUMS_IN_ANOTHER_ORDER = 1e-5
# Runs in this process and, as a script, in two more. Row 0 alone uses `rare`, so that one of two
# processes has no gradient for it. `matrix` goes to Muon, the rest to AdamW.
WORLD = """
import torch
from tinywan.trainer import Trainer, TrainerConfig, rank_and_world
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(6, 6))
        self.rare = nn.Parameter(torch.randn(6))
        self.out = nn.Linear(6, 1)

    def forward(self, x, first):
        return self.out((x @ self.matrix).tanh() + (self.rare if first else 0)).square()

def trained(folder, steps=3, minutes=None):
    torch.manual_seed(1)
    net = Net()
    config = TrainerConfig(steps=steps, minutes=minutes, warmup=1, sample_every=1000)
    trainer = Trainer(folder, net, config, lambda name: name == "matrix")
    def loss_of(step):
        rows = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
        rank, world = rank_and_world()
        mine = range(rank, 4, world)
        return torch.stack([net(rows[i], i == 0) for i in mine]).mean(), {}
    with trainer:
        trainer.run(loss_of, lambda step: None)
    return net.state_dict()
"""


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(5, 8)
        self.out = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.hidden(x).tanh())


def trainer_in(folder: Path, config: TrainerConfig = STEPS, **more: object) -> Trainer:
    torch.manual_seed(1)
    return Trainer(folder, Net(), config, is_matrix=lambda name: name == "hidden.weight", **more)


def loss_of(trainer: Trainer, stop_at: int | None = None) -> Callable[[int], tuple[Tensor, dict]]:
    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == stop_at:
            raise KeyboardInterrupt
        x = torch.randn(7, 5, generator=torch.Generator().manual_seed(step))
        return (trainer.module(x) - x).square().mean(), {}

    return loss


def train(folder: Path, stop_at: int | None = None) -> Trainer:
    trainer = trainer_in(folder)
    trainer.resume()
    with trainer:
        trainer.run(loss_of(trainer, stop_at), lambda step: None)
    return trainer


def everything(trainer: Trainer) -> dict[str, Tensor]:
    """All numbers of a trainer's state, by path."""
    found: dict[str, Tensor] = {}

    def collect(value: object, path: str) -> None:
        if isinstance(value, dict):
            for key, inner in value.items():
                collect(inner, f"{path}.{key}")
        elif isinstance(value, Tensor):
            found[path] = value.clone()

    collect(trainer.module.state_dict(), "module")
    collect(trainer.average, "average")
    for i, optimizer in enumerate(trainer.optimizers):
        collect(optimizer.state_dict()["state"], f"optimizer{i}")
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for path in one:
        assert torch.equal(one[path], other[path]), path


def test_a_run_that_was_broken_and_resumed_equals_one_that_was_not(tmp_path):
    whole = train(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "broken", stop_at=3)
    resumed = train(tmp_path / "broken")
    assert resumed.step == whole.step == 6
    assert_same(everything(resumed), everything(whole))


def stop(*_: object) -> None:
    """Stands for Ctrl-C."""
    raise KeyboardInterrupt


@pytest.mark.parametrize("where", ["backward", "look"])
def test_an_interrupt_outside_of_an_update_is_saved_and_resumed(tmp_path, where):
    whole, trainer = train(tmp_path / "whole"), trainer_in(tmp_path / "broken")
    usual = loss_of(trainer)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        found, figures = usual(step)
        if where == "backward" and step == 4:
            found.register_hook(stop)
        return found, figures

    sentence = "^stopped and saved after step 4; the same command resumes$"
    with trainer, pytest.raises(KeyboardInterrupt, match=sentence):
        trainer.run(loss, stop if where == "look" else lambda step: None)
    resumed = trainer_in(tmp_path / "broken")
    assert resumed.resume()
    assert resumed.step == 4
    assert_same(everything(resumed), everything(trainer))
    assert_same(everything(train(tmp_path / "broken")), everything(whole))


@pytest.mark.parametrize(
    ("save_every", "kept", "sentence"),
    [
        (120.0, None, "nothing was saved yet, and the same command begins anew"),
        (0.0, 3, "the same command resumes after step 3"),
    ],
)
def test_an_interrupt_within_an_update_says_what_is_left(tmp_path, save_every, kept, sentence):
    trainer = trainer_in(tmp_path, replace(STEPS, save_every=save_every))
    usual = loss_of(trainer)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        if step == 3:
            trainer.optimizers[1].step = stop  # those of the first have changed by then
        return usual(step)

    with trainer, pytest.raises(KeyboardInterrupt, match=f"within a step.*: {sentence}"):
        trainer.run(loss, lambda step: None)
    resumed = trainer_in(tmp_path)
    assert resumed.resume() is (kept is not None)
    assert resumed.step == (kept or 0)


@pytest.mark.parametrize("exchange", [2, 6])  # four parameters: on the way there, or back
def test_an_interrupt_while_the_average_is_lent_or_given_back_saves_nothing(tmp_path, exchange):
    class Average(dict):
        asked = 0

        def __getitem__(self, name: str) -> Tensor:
            self.asked += 1
            return stop() if self.asked > 2 * exchange else super().__getitem__(name)

    trainer = trainer_in(tmp_path)
    trainer.average = Average(trainer.average)
    with trainer, pytest.raises(KeyboardInterrupt, match="within a step"):
        trainer.run(loss_of(trainer), lambda step: None)
    assert trainer.step == 4
    assert trainer_in(tmp_path).resume() is False


RECIPE = VAERecipe(STEPS, batch=2, seed=5)


def test_a_resumed_run_may_take_other_steps_time_and_machines(tmp_path):
    trainer_in(tmp_path, asked=[RECIPE]).save()
    steps = replace(STEPS, steps=9, minutes=5.0, sample_every=7, save_every=3.0, bfloat16=True)
    other = replace(RECIPE, trainer=steps, workers=4, bfloat16=True, compiled=True)
    assert trainer_in(tmp_path, asked=[other]).resume()
    phases = (Phase(6, 1, 8, 2), Phase(5, 9, 4, 2))
    trainer_in(tmp_path, asked=[DenoiserRecipe(STEPS, phases)]).save()
    again = (Phase(60, 1, 8, 4), Phase(7, 9, 4, 1))
    assert trainer_in(tmp_path, asked=[DenoiserRecipe(steps, again)]).resume()


@pytest.mark.parametrize(
    ("other", "named"),
    [
        (replace(RECIPE, seed=9), r"seed=9 \(it was 5\)"),
        (
            replace(RECIPE, batch=3, anchor=0.5),
            r"batch=3 \(it was 2\), anchor=0\.5 \(it was 0\.0\)",
        ),
        (replace(RECIPE, trainer=replace(STEPS, lr=0.5)), r"trainer\.lr=0\.5 \(it was 0\.002\)"),
    ],
)
def test_a_run_that_was_asked_for_something_else_is_refused(tmp_path, other, named):
    trainer_in(tmp_path, asked=[RECIPE]).save()
    trainer = trainer_in(tmp_path, asked=[other])
    with pytest.raises(
        ConfigError, match=f"was begun with other options: {named}: .*another --out"
    ):
        trainer.resume()
    assert trainer.step == 0


def test_a_phase_with_other_batches_is_refused(tmp_path):
    one, other = (DenoiserRecipe(STEPS, (Phase(6, 1, batch, 2),)) for batch in (8, 4))
    trainer_in(tmp_path, asked=[one]).save()
    with pytest.raises(ConfigError, match=r"phases\.0\.batch=4 \(it was 8\)"):
        trainer_in(tmp_path, asked=[other]).resume()


def test_a_run_that_went_on_from_other_weights_is_refused(tmp_path):
    weights = Net()
    trainer_in(tmp_path, start=[weights]).save()
    assert trainer_in(tmp_path, start=[weights]).resume()
    with torch.no_grad():
        weights.out.bias[0] += 1e-3
    for other in ([weights], []):
        with pytest.raises(ConfigError, match=r"start='\w+' \(it was '\w+'\)"):
            trainer_in(tmp_path, start=other).resume()


def test_a_state_that_does_not_tell_what_it_was_asked_for_is_resumed(tmp_path):
    trainer = trainer_in(tmp_path, asked=[RECIPE])
    trainer.save()
    state = torch.load(trainer.state_path)
    del state["asked"]
    torch.save(state, trainer.state_path)
    assert trainer_in(tmp_path, asked=[replace(RECIPE, seed=9)], start=[Net()]).resume()


@pytest.mark.parametrize("change", [{"seed": 9}, {"anchor": 0.5}, {"start": None}])
def test_a_vae_is_resumed_with_what_it_was_begun_with(tmp_path, change):
    config = preset("debug").vae
    asked = {"seed": 0, "anchor": 0.0, "start": CausalVAE(config).eval()}

    def train(steps: int, *, start: CausalVAE | None, **options: float) -> None:
        recipe = VAERecipe(
            TrainerConfig(steps=steps), batch=1, size=32, freeze_encoder=True, **options
        )
        train_vae(tmp_path, recipe, config, start=start)

    train(0, **asked)
    with pytest.raises(ConfigError, match=f"{next(iter(change))}=.*it was"):
        train(0, **(asked | change))
    train(0, **asked)


def test_without_tensorboard_a_sentence_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'wanviz\[train\]'"), trainer_in(tmp_path):
        pytest.fail("there is nowhere to write logs to")


def test_training_lowers_the_loss(tmp_path):
    trainer = trainer_in(tmp_path, TrainerConfig(steps=60, warmup=2, lr=0.02, sample_every=1000))
    loss = loss_of(trainer)
    before = loss(1000)[0].item()
    with trainer:
        trainer.run(loss, lambda step: None)
    assert loss(1000)[0].item() < 0.5 * before


def test_a_run_without_state_begins_anew(tmp_path):
    trainer = trainer_in(tmp_path)
    assert trainer.resume() is False
    assert trainer.step == 0


@pytest.mark.parametrize("damage", ["truncated", "foreign", "other architecture"])
def test_a_state_that_cannot_be_read_gets_a_sentence(tmp_path, damage):
    path = train(tmp_path).state_path
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-200])
    elif damage == "foreign":
        torch.save({"weights": torch.zeros(2)}, path)
    else:
        torch.save({**torch.load(path), "module": nn.Linear(2, 2).state_dict()}, path)
    with pytest.raises(CheckpointError, match=r"(?s)cannot resume from .*Use another folder"):
        trainer_in(tmp_path).resume()


def test_a_save_that_fails_half_way_leaves_the_old_state(tmp_path, monkeypatch):
    trainer = train(tmp_path)
    kept = everything(trainer)

    def half(state, file):
        file.write(b"half of it")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", half)
    with torch.no_grad():
        trainer.module.hidden.weight.add_(1)
    with pytest.raises(OSError, match="No space left"):
        trainer.save()
    resumed = trainer_in(tmp_path)
    assert resumed.resume()
    assert_same(everything(resumed), kept)


def test_a_batch_with_an_infinite_gradient_is_left_out(tmp_path, capfd):
    trainer = trainer_in(tmp_path)
    start = everything(trainer)
    with trainer:
        trainer.run(
            lambda step: (trainer.module(torch.full((1, 5), torch.inf)).sum(), {}),
            lambda step: None,
        )
    assert "the gradient is not finite; this batch is left out" in capfd.readouterr().out
    assert_same(everything(trainer), start)


def test_the_average_follows_the_weights_and_is_lent_for_looking(tmp_path):
    trainer = train(tmp_path)
    weights, average = trainer.module.state_dict(), trainer.average
    own = {name: value.clone() for name, value in weights.items()}
    mean = {name: value.clone() for name, value in average.items()}
    assert all((own[name] - mean[name]).abs().max() > 1e-4 for name in own)
    with pytest.raises(RuntimeError, match="look away"), trainer.averaged():
        assert not trainer.module.training
        assert_same(dict(trainer.module.state_dict()), mean)
        raise RuntimeError("look away")
    assert trainer.module.training
    assert_same(dict(trainer.module.state_dict()), own)
    assert_same(trainer.average, mean)


def test_it_looks_every_few_steps_and_at_the_end(tmp_path):
    trainer, looked = trainer_in(tmp_path), []
    with trainer:
        trainer.run(loss_of(trainer), looked.append)
    assert looked == [4, 6]


def test_minutes_bound_a_run_and_the_rate_falls_in_time(tmp_path, monkeypatch):
    trainer, looked, rates = trainer_in(tmp_path), [], []
    trainer.config = replace(trainer.config, steps=1000, minutes=1.0, sample_every=10**6, warmup=1)
    clock = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: 3.0 * next(clock))  # each look takes 3 s
    usual = loss_of(trainer)

    def loss(step):
        rates.append(trainer.config.rate(step, trainer.seconds))
        return usual(step)

    with trainer:
        trainer.run(loss, looked.append)
    assert looked == [trainer.step]
    assert 5 < trainer.step < 25
    assert trainer.seconds >= 60
    assert rates[0] == 1
    assert 0.05 <= rates[-1] < 0.25  # a step takes a tenth of the minute
    assert rates == sorted(rates, reverse=True)
    monkeypatch.undo()
    again = trainer_in(tmp_path)
    again.config = trainer.config
    assert again.resume()
    with again:
        again.run(lambda step: pytest.fail("its minutes were over"), looked.append)
    assert again.step == trainer.step


def test_the_rate_rises_stays_and_falls_to_a_twentieth():
    config = TrainerConfig(steps=100, warmup=10, cooldown=0.3)
    rates = [config.rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert rates[9:70] == pytest.approx([1.0] * 61)
    assert rates[99] == pytest.approx(0.05)
    assert rates[70:] == sorted(rates[70:], reverse=True)


def test_batches_are_made_of_seed_and_step_alone():
    recipe = VAERecipe(STEPS, batch=2, num_frames=5, crop=24, size=32)
    found = training_batch(recipe, step=3)
    assert found.video.shape == (2, 3, 5, 24, 24)
    assert found.weight.shape == (2, 1, 5, 24, 24)
    assert found.flow.shape == (2, 4, 24, 24, 2)
    assert found.particles.shape == (2, 5, 24, 24)
    assert -1 <= found.video.min() < found.video.max() <= 1
    assert found.weight.mean().item() == pytest.approx(1, abs=1e-5)
    again, other = (training_batch(recipe, step=step) for step in (3, 4))
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))
    assert not torch.equal(found.video, other.video)


def test_crops_tell_how_their_own_pixels_move():
    recipe = VAERecipe(STEPS, batch=6, num_frames=5, crop=48, size=64, world="whole")
    found = training_batch(recipe, step=1)
    assert true_motion(found.video, found.flow, around=0).visible.float().mean() > 0.75
    everything = true_motion(found.video, found.flow)
    kept = true_motion(found.video, found.flow, found.particles)
    for crop, falls in enumerate(found.particles.flatten(1).any(1)):
        dropped = everything.visible[crop].sum() - kept.visible[crop].sum()
        assert (dropped > 0) == falls
    assert found.particles.any()
    assert not (kept.visible & found.particles[:, :-1]).any()


def test_the_flow_loss_is_asked_of_what_the_vae_draws():
    recipe = VAERecipe(STEPS, batch=2, num_frames=5, crop=32, size=32)
    crops, vae = training_batch(recipe, step=3), CausalVAE(preset("debug").vae).train()
    losses, parts, gradients = {}, {}, {}
    for weight in (0.0, 3.0):
        vae.zero_grad()
        generator = torch.Generator().manual_seed(1)
        asked = replace(recipe, flow=weight)
        losses[weight], parts[weight] = vae_loss(vae, crops, asked, generator)
        losses[weight].backward()
        gradients[weight] = vae.decoder.head.weight.grad.clone()
    assert "flow" not in parts[0.0]
    with torch.no_grad():
        mean, logvar = vae.posterior(crops.video)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
        seen = vae.reconstruct(mean + noise * (0.5 * logvar).exp())
    wanted = warping_error(seen, true_motion(crops.video, crops.flow, crops.particles)).item()
    assert parts[3.0]["flow"] == pytest.approx(wanted, rel=1e-4)
    assert (losses[3.0] - losses[0.0]).item() == pytest.approx(3 * wanted, rel=1e-3)
    assert (gradients[3.0] - gradients[0.0]).abs().max() > 1e-5


def test_the_two_errors_of_the_vae_count_as_much_as_is_asked():
    recipe = VAERecipe(STEPS, batch=2, num_frames=5, crop=32, size=32, kl=0)
    crops, vae = training_batch(recipe, step=3), CausalVAE(preset("debug").vae).eval()
    with torch.no_grad():
        mean, logvar = vae.posterior(crops.video)
        noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
        error = vae.reconstruct(mean + noise * (0.5 * logvar).exp()) - crops.video
        for absolute, square in ((1.0, 0.0), (0.0, 10.0), (0.5, 4.0)):
            asked = replace(recipe, absolute=absolute, square=square)
            loss, _ = vae_loss(vae, crops, asked, torch.Generator().manual_seed(1))
            wanted = (crops.weight * (absolute * error.abs() + square * error.square())).mean()
            assert loss.item() == pytest.approx(wanted.item(), rel=1e-4)


def start(code: str, *arguments: str) -> subprocess.Popen:
    """A Python process of one thread."""
    command = [sys.executable, "-c", textwrap.dedent(code), *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)


def test_two_processes_train_what_one_would(tmp_path):
    """Gradients are averaged, also where one process has none, and Muon shares its work.

    The router's balance loss is not covered: it is a mean over the tokens of one process, by
    design, and so differs from that of the whole batch.
    """
    code = f"""{WORLD}
import sys, torch.distributed as dist
from pathlib import Path
from tinywan.muon import orthogonalise_together
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
meeting = f"file://{{folder}}/meeting"
dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
stack = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(5))
result = dict(trained(folder / "two"), stack=orthogonalise_together(stack))
torch.save(result, folder / f"rank{{rank}}.pt")
dist.destroy_process_group()
"""
    processes = [start(code, str(rank), str(tmp_path)) for rank in (0, 1)]
    assert [process.wait(timeout=300) for process in processes] == [0, 0]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1))
    assert_same(first, second)
    stack = torch.randn(3, 4, 7, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(first.pop("stack"), orthogonalise(stack), atol=1e-5, rtol=0)
    here: dict = {}
    exec(WORLD, here)
    alone = here["trained"](tmp_path / "one")
    for name, value in alone.items():
        torch.testing.assert_close(first[name], value, atol=SUMS_IN_ANOTHER_ORDER, rtol=0)


def test_two_processes_follow_one_clock_and_end_together(tmp_path):
    code = f"""{WORLD}
import sys, time, torch.distributed as dist
from pathlib import Path
rank, folder = int(sys.argv[1]), Path(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{{folder}}/meeting", rank=rank, world_size=2)
clock, began = time.monotonic, time.monotonic()
time.monotonic = lambda: began + (1 + 2 * rank) * (clock() - began)  # the second one's runs ahead
torch.save(trained(folder / "two", steps=10**6, minutes=0.03), folder / f"rank{{rank}}.pt")
dist.destroy_process_group()
"""
    processes = [start(code, str(rank), str(tmp_path)) for rank in (0, 1)]
    try:
        assert [process.wait(timeout=60) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert_same(*(torch.load(tmp_path / f"rank{rank}.pt") for rank in (0, 1)))


def test_a_kill_in_the_middle_of_a_save_leaves_a_state_to_resume_from(tmp_path):
    training = start(
        f"""
        from pathlib import Path
        from tinywan.presets import preset
        from tinywan.train_vae import VAERecipe, train_vae
        from tinywan.trainer import TrainerConfig
        steps = TrainerConfig(steps=10**6, save_every=0)  # saves after every step
        recipe = VAERecipe(steps, batch=1, num_frames=5, crop=16, size=32)
        train_vae(Path({str(tmp_path)!r}), recipe, preset("debug").vae)
        """
    )
    state, part = tmp_path / "state.pt", tmp_path / "state.part"
    deadline = time.monotonic() + 300
    while not (state.exists() and part.exists()):  # the second save, or a later one, is under way
        assert training.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.0005)
    training.send_signal(signal.SIGKILL)
    assert training.wait() == -signal.SIGKILL
    vae = CausalVAE(preset("debug").vae)
    trainer = Trainer(tmp_path, vae, TrainerConfig(steps=10**6), is_matrix=lambda name: True)
    assert trainer.resume()
    assert trainer.step >= 1
    assert all(value.isfinite().all() for value in everything(trainer).values())
    trainer.save()  # over the half-written file
    assert not part.exists()


@pytest.mark.slow
def test_the_command_trains_a_checkpoint_from_nothing_resumes_and_goes_on_from_it(tmp_path):
    def train(out: str, more: str = "") -> str:
        options = f"--preset debug --image-steps 2 --video-steps 2 --threads 1 {more}"
        if "--start-from" not in more or "--flow-loss" in more:
            options += " --vae-steps 3"  # otherwise the VAE is kept, unless `more` says it is not
        options += f" --image-batch 2 --video-batch 2 --micro-batch 1 --out {out}"
        command = [sys.executable, "-m", "tinywan.train", *options.split()]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run = tmp_path / "run"
    (run / "denoiser").mkdir(parents=True)
    shutil.copy(SHIPPED / "tokenizer.json", run / "denoiser")  # saves its training
    assert "wrote run/checkpoint; use it with TextToVideoPipeline.from_pretrained" in train("run")
    weights = (run / "checkpoint/transformer.safetensors").read_bytes()
    train("run")  # nothing is left to do
    assert (run / "checkpoint/transformer.safetensors").read_bytes() == weights
    pipe = TextToVideoPipeline.from_pretrained(run / "checkpoint")
    frames = pipe("a dog", num_inference_steps=2, seed=1, progress_bar=False).frames
    assert frames.shape == (1, 9, 32, 32, 3)
    assert pipe.config.vae.latents_mean != preset("debug").vae.latents_mean  # measured
    assert list((run / "vae").glob("step*.png"))
    assert list((run / "denoiser").glob("step*.png"))
    assert list((run / "denoiser/logs").glob("events.out.tfevents.*"))
    train("more", "--start-from run/checkpoint")
    more = TextToVideoPipeline.from_pretrained(tmp_path / "more/checkpoint")
    assert more.config == pipe.config
    assert_same(more.vae.state_dict(), pipe.vae.state_dict())
    moved = more.transformer.proj_out.weight - pipe.transformer.proj_out.weight
    assert 0 < moved.abs().max() < 0.01  # four steps on from there, not from elsewhere
    assert list((run / "denoiser/snapshots").glob("step*/seen.json"))
    larger = "--start-from run/checkpoint --freeze-encoder --decoder-widths 8 20 --vae-steps 2"
    train("larger", larger)
    larger = TextToVideoPipeline.from_pretrained(tmp_path / "larger/checkpoint")
    assert larger.config.vae.decoder_widths == (8, 20)
    assert_same(larger.vae.encoder.state_dict(), pipe.vae.encoder.state_dict())
    train("deeper", "--start-from run/checkpoint --freeze-encoder --decoder-depth 2 --vae-steps 1")
    deeper = TextToVideoPipeline.from_pretrained(tmp_path / "deeper/checkpoint")
    assert len(deeper.vae.decoder.layers) == len(pipe.vae.decoder.layers) + 3
    assert_same(deeper.vae.encoder.state_dict(), pipe.vae.encoder.state_dict())
    moved = deeper.vae.decoder.head.weight - pipe.vae.decoder.head.weight
    assert moved.abs().max() < 0.05  # one step on from there
    train("forked", "--start-from run/checkpoint --noise-experts")
    forked = TextToVideoPipeline.from_pretrained(tmp_path / "forked/checkpoint")
    moved = forked.text_encoder.embed.weight - pipe.text_encoder.embed.weight
    assert 0 < moved.abs().max() < 0.05  # one reader, whom both teach
    high, low = forked.transformer.proj_out.weight, forked.transformer_2.proj_out.weight
    assert not torch.equal(high, low)
    assert (high - low).abs().max() < 0.02
    train("alone", "--start-from forked/checkpoint --train-only low")
    alone = TextToVideoPipeline.from_pretrained(tmp_path / "alone/checkpoint")
    for part in ("transformer", "text_encoder", "vae"):
        assert_same(getattr(alone, part).state_dict(), getattr(forked, part).state_dict())
    assert not torch.equal(alone.transformer_2.proj_out.weight, low)
    on = "--start-from forked/checkpoint --keyframes --flow-loss 0.5 --flow-sigma 0.9 --bfloat16"
    on += " --vae-flow-loss 2"
    train("on", on)  # two experts stay two, and learn to read keyframes; the VAE goes on, too
    on = TextToVideoPipeline.from_pretrained(tmp_path / "on/checkpoint")
    moved = on.vae.decoder.head.weight - pipe.vae.decoder.head.weight
    assert 0 < moved.abs().max() < 0.05
    assert on.transformer_2 is not on.transformer
    assert on.config.dit.condition_channels == 20


def test_a_frozen_encoder_keeps_the_latents_while_a_larger_decoder_learns_anew(tmp_path):
    steps = TrainerConfig(steps=4, warmup=1)
    recipe = VAERecipe(steps, batch=1, num_frames=5, crop=16, size=32, freeze_encoder=True)
    start = CausalVAE(replace(preset("debug").vae, latents_mean=(0.5,) * 16)).eval()
    for widths in ((8, 16), (12, 20)):
        wanted = replace(start.config, decoder_widths=widths)
        made = train_vae(tmp_path / str(widths), recipe, wanted, start=start)
        assert_same(made.encoder.state_dict(), start.encoder.state_dict())
        assert made.config == wanted  # mean and deviation are still the old ones
        assert made.decoder.head.weight.shape[1] == 9 * widths[0]
        video = torch.rand(1, 3, 5, 16, 16) * 2 - 1
        with torch.no_grad():
            assert torch.equal(made.encode(video), start.encode(video))
    kept = train_vae(
        tmp_path / "kept",
        replace(recipe, trainer=TrainerConfig(steps=0)),
        start.config,
        start=start,
    )
    assert_same(kept.state_dict(), start.state_dict())  # the decoder was taken over, too


@pytest.mark.parametrize("widths", [(8, 16), (12, 24)])
def test_a_larger_encoder_learns_while_what_is_drawn_stays_and_latents_are_held(tmp_path, widths):
    steps = TrainerConfig(steps=6, warmup=1)
    recipe = VAERecipe(steps, batch=1, num_frames=5, crop=16, size=32, freeze_decoder=True)
    start = CausalVAE(replace(preset("debug").vae, latents_mean=(0.5,) * 16)).eval()
    wanted = replace(start.config, encoder_depth=3, encoder_widths=widths)
    latents, video = torch.randn(1, 16, 2, 2, 2), torch.rand(1, 3, 5, 16, 16) * 2 - 1
    nothing = torch.zeros(1, 5, 16, 16, dtype=torch.bool)
    crops = Crops(video, torch.ones_like(video[:, :1]), torch.zeros(1, 4, 16, 16, 2), nothing)
    made = train_vae(tmp_path, replace(recipe, anchor=0.5), wanted, start=start)
    assert made.config == wanted  # mean and deviation are still the old ones
    assert_same(made.decoder.state_dict(), start.decoder.state_dict())
    with torch.no_grad():
        assert torch.equal(made.decode(latents), start.decode(latents))
        assert not torch.equal(made.encode(video), start.encode(video))
    losses, parts = {}, {}
    for anchor in (0.0, 2.0):
        asked = replace(recipe, anchor=anchor)
        noise = torch.Generator().manual_seed(1)
        losses[anchor], parts[anchor] = vae_loss(made, crops, asked, noise, start)
    drift = (made.posterior(video)[0] - start.posterior(video)[0]).square().mean()
    assert parts[2.0]["drift"] == pytest.approx(drift.item(), rel=1e-4)
    assert (losses[2.0] - losses[0.0]).item() == pytest.approx(2 * drift.item(), rel=1e-2)
    assert "drift" not in parts[0.0]


def test_a_vae_that_was_stopped_goes_on_with_the_crops_that_come_next(tmp_path, monkeypatch):
    recipe = VAERecipe(TrainerConfig(steps=4, warmup=1), batch=1, num_frames=5, crop=16, size=32)
    config, asked = preset("debug").vae, []
    batch = train_vae_module.training_batch

    def watched(recipe, step):
        asked.append(step)
        if step == 2 and asked.count(2) == 1:
            raise KeyboardInterrupt
        return batch(recipe, step)

    whole = train_vae(tmp_path / "whole", recipe, config)
    monkeypatch.setattr(train_vae_module, "training_batch", watched)
    with pytest.raises(KeyboardInterrupt):
        train_vae(tmp_path / "broken", recipe, config)
    resumed = train_vae(tmp_path / "broken", recipe, config)
    assert asked == [0, 1, 2, 2, 3]
    assert_same(resumed.state_dict(), whole.state_dict())


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (f"--freeze-encoder --start-from {SHIPPED}", "give --vae-steps"),
        (f"--decoder-widths 8 16 --start-from {SHIPPED}", "another VAE, which has to learn"),
        (f"--decoder-depth 4 --start-from {SHIPPED}", "another VAE, which has to learn"),
        (f"--decoder-depth 1 --start-from {SHIPPED} --vae-steps 9", "would take blocks away"),
        (f"--encoder-depth 1 --start-from {SHIPPED} --vae-steps 9", "away from the encoder"),
        (f"--encoder-widths 96 256 --start-from {SHIPPED}", "another VAE, which has to learn"),
        (f"--encoder-widths 8 256 --start-from {SHIPPED} --vae-steps 9", "take channels away"),
        (f"--freeze-decoder --start-from {SHIPPED}", "--freeze-decoder keeps the decoder of"),
        (
            f"--freeze-decoder --freeze-encoder --vae-steps 9 --start-from {SHIPPED}",
            "leave --freeze-encoder out",
        ),
        (
            f"--freeze-decoder --decoder-depth 4 --vae-steps 9 --start-from {SHIPPED}",
            "leave its widths and depth out",
        ),
        ("--preset debug --decoder-depth 0", "decoder_depth=0"),
        ("--preset debug --encoder-depth 0", "encoder_depth=0"),
        ("--preset debug --vae-batch 0", "vae_batch=0"),
        ("--preset debug --vae-steps -1", "vae_steps=-1"),
        (f"--vae-flow-loss 2 --start-from {SHIPPED}", "asked of a VAE that learns"),
        ("--preset debug --vae-flow-loss -1", "vae_flow_loss=-1.0"),
        ("--preset debug --vae-errors -1 4", "vae_errors=-1.0 4.0"),
        ("--preset debug --vae-errors 0 0", "vae_errors=0.0 0.0"),
        ("--preset debug --flow-loss 1 --flow-sigma 0", "flow_sigma=0.0"),
        ("--noise-experts", "--noise-experts forks a trained denoiser: name one with --start-from"),
        ("--preset debug --train-only low", "neither side can be trained alone"),
        (f"--preset small --start-from {SHIPPED}", "leave --preset out"),
        (f"--world first --start-from {SHIPPED}", "goes on in the whole world"),
        ("--start-from nowhere", "there is no checkpoint in nowhere"),
        ("--preset debug --image-batch 0", "image_batch=0"),
        ("--preset debug --seed -1", "seed=-1: use a finite number, 0 to 4294967295"),
        (f"--preset debug --seed {2**32}", "seed=4294967296: use a finite number, 0 to 4294967295"),
        ("--preset debug --image-steps -5", "image_steps=-5: use a finite number, 0 or more"),
        ("--preset debug --video-steps -5", "video_steps=-5: use a finite number, 0 or more"),
        ("--preset debug --sample-every 0", "sample_every=0: use a finite number, 1 or more"),
        ("--preset debug --encoder-widths 0 16", "encoder_widths=0 16: use a finite number, 1 or more"),
        ("--preset debug --training-shift 0", "training_shift=0.0: use a finite number, more than 0"),
        ("--preset debug --training-shift -1", "training_shift=-1.0: use a finite number, more than 0"),
        ("--preset debug --minutes nan", "minutes=nan: use a finite number, more than 0"),
        ("--preset debug --vae-anchor 5", "give --vae-steps"),
        (f"--vae-anchor 5 --start-from {SHIPPED}", "give --vae-steps"),
        ("--preset debug --vae-anchor 5 --vae-steps 9", "name one with --start-from"),
        ("--preset debug --practise camera", "use action or direction"),
        ("--preset debug --practise wind", "use action or direction"),
        *(
            (f"--preset debug --{name} {value}", f"{name.replace('-', '_')}={value}")
            for name in (
                "lr", "muon-lr", "vae-lr", "vae-muon-lr", "grounding", "vae-anchor", "flow-loss",
                "contrast", "identity", "recall", "focus",
            )
            for value in ("-1.0", "nan", "inf")
        ),
    ],
)  # fmt: skip
def test_the_command_refuses_what_cannot_be_trained(tmp_path, capsys, options, sentence):
    from tinywan.train import main

    assert main(["--out", str(tmp_path / "run"), *options.split()]) == 2
    assert sentence in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_the_command_refuses_a_folder_that_cannot_be_written(tmp_path, capsys):
    from tinywan.train import main

    (tmp_path / "file").write_text("not a folder")
    assert main(["--preset", "debug", "--out", str(tmp_path / "file" / "run")]) == 2
    assert "Not a directory" in capsys.readouterr().err


def test_the_command_refuses_a_device_that_is_not_there(tmp_path, capsys):
    from tinywan.train import main

    assert main(["--out", str(tmp_path / "run"), "--device", "tpu"]) == 2
    assert "error: this machine has no device 'tpu': use cpu" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_of_several_processes_each_has_its_device_or_gets_a_sentence(tmp_path, monkeypatch, capsys):
    from tinywan.train import main

    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "77")
    assert main(["--out", str(tmp_path / "run"), "--device", "cuda"]) == 2
    assert "error: this machine has no device 'cuda" in capsys.readouterr().err


def test_the_command_says_what_an_interrupt_left(tmp_path, monkeypatch, capsys):
    from tinywan.train import main

    options = ["--preset", "debug", "--vae-steps", "4", "--vae-batch", "1", "--out", str(tmp_path)]
    monkeypatch.setattr(train_vae_module, "check_shareable", stop)
    assert main(options) == 130
    assert "stopped while nothing was trained" in capsys.readouterr().err
    monkeypatch.undo()
    batch = train_vae_module.training_batch
    monkeypatch.setattr(
        train_vae_module, "training_batch", lambda *how: stop() if how[1] == 2 else batch(*how)
    )
    assert main(options) == 130
    assert "stopped and saved after step 2; the same command resumes" in capsys.readouterr().err
    assert torch.load(tmp_path / "vae/state.pt")["step"] == 2


def test_the_command_refuses_to_resume_what_was_asked_otherwise(tmp_path, capsys):
    from tinywan.train import main

    def train(start: str, *more: str) -> int:
        options = "--video-steps 0 --image-batch 2 --takes 1".split()
        where = ["--out", str(tmp_path / "run"), "--start-from", str(tmp_path / start)]
        return main([*where, *options, *more])

    for seed, name in enumerate(("one", "other")):
        TextToVideoPipeline.from_preset("debug", seed).save_pretrained(tmp_path / name)
    assert train("one", "--image-steps", "1") == 0
    weights = (tmp_path / "run/checkpoint/transformer.safetensors").read_bytes()
    assert train("other", "--image-steps", "1", "--seed", "9", "--grounding", "0") == 2
    said = capsys.readouterr().err
    for named in ("seed=9 (it was 0)", "grounding=0.0 (it was 1.0)", "start=", "another --out"):
        assert named in said
    assert (tmp_path / "run/checkpoint/transformer.safetensors").read_bytes() == weights
    assert train("one", "--image-steps", "1", "--no-windows") == 2
    assert " spatial_windows.0=None (it was 2)" in capsys.readouterr().err
    assert train("one", "--image-steps", "2", "--micro-batch", "1", "--sample-every", "7") == 0
    assert (tmp_path / "run/checkpoint/transformer.safetensors").read_bytes() != weights
