"""Training in several processes: the gradients of one process with the whole batch, each reduced once, or a refusal."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

import sdeadjoint as sa

from .documents import ROOT
from .networks import LowRank
from .ranks import Program, Reductions, parent, run_ranks, torchrun
from .solves import DOUBLE, SCHEDULE

ADJOINTS = {
    "Direct": sa.Direct(),
    "Checkpoint": sa.Checkpoint(),
    "Checkpoint(1)": sa.Checkpoint(snapshots=1),
    "Checkpoint(memory)": sa.Checkpoint(memory="6kB"),
    "Reversible": sa.Reversible(),
    "Truncated": sa.Truncated(last=1),
    "ContinuousAdjoint": sa.ContinuousAdjoint(),
}
STEPS = 2  # wrappers count calls within one pass; "nine steps" has more
# Under which a step calls the network twice, as every coupled one does. Adjoints handle steps, and wrappers calls:
# neither knows how many of the ones are in the other, so that one call is enough under the other adjoints.
TWICE = (ADJOINTS["Checkpoint"], ADJOINTS["Direct"])
# One process sums over the batch in another order than several: round-off of double precision, some digits lost.
CLOSE = 1e-12


# What is solved.


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inward = nn.Linear(width, 8).double()
        self.outward = nn.Linear(8, width).double()

    def forward(self, h: Tensor) -> Tensor:
        return h + self.outward(torch.tanh(self.inward(h)))


class Network(nn.Module):
    """Blocks that are called once per evaluation, sizes that two processes divide, and a weight that nobody uses."""

    def __init__(self, *, unused: bool = False) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            self.inward = nn.Linear(5, 6).double()
            self.blocks = nn.ModuleList(Block(6) for _ in range(2))
            self.outward = nn.Linear(6, 4).double()
        self.unused = nn.Parameter(torch.zeros(2, dtype=DOUBLE)) if unused else None

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.inward(torch.cat([x, t[:, None].to(x.dtype)], 1)))
        h = h if z is None else h + torch.sin(z)
        for block in self.blocks:
            h = block(h)
        return self.outward(h)


class Experts(Network):
    """One block for the noisy half of the times, the other for the rest."""

    def forward(self, x: Tensor, t: Tensor, z: Tensor | None = None) -> Tensor:
        h = torch.tanh(self.inward(torch.cat([x, t[:, None].to(x.dtype)], 1)))
        h = h if z is None else h + torch.sin(z)
        return self.outward(self.blocks[int(t[0] < 0.5)](h))


def with_adapters(network: Network) -> Network:
    """The same with a frozen base and trained updates of low rank."""
    network.requires_grad_(False)
    for block in network.blocks:
        assert isinstance(block, Block)
        block.inward, block.outward = LowRank(block.inward), LowRank(block.outward)  # type: ignore[assignment]
    return network


class Part:
    """One process's part of a batch of four: by the sample's place in the whole batch."""

    def __init__(self, rank: int = 0, world: int = 1) -> None:
        mine = slice(4 * rank // world, 4 * (rank + 1) // world)
        generator = torch.Generator().manual_seed(1)
        self.x_T = torch.randn(4, 4, dtype=DOUBLE, generator=generator)[mine]
        self.z = torch.randn(4, 6, dtype=DOUBLE, generator=generator)[mine]
        self.seeds = [3, 1, 4, 15][mine]

    @property
    def noise(self) -> sa.BrownianPath:
        return sa.BrownianPath(seed=self.seeds)


def sampler(network: Callable[..., Any], adjoint: sa.Adjoint, steps: int = STEPS) -> sa.Sampler:
    flow = isinstance(adjoint, sa.Reversible)
    return sa.Sampler(
        sa.Denoiser(network, SCHEDULE, "sample"),
        frame=sa.Frame(SCHEDULE, 1.0, "flow" if flow else "data"),
        grid=sa.uniform_logsnr(SCHEDULE, steps),
        solver=sa.Coupled(sa.Euler()) if flow else sa.Heun() if adjoint in TWICE else sa.Euler(),
        adjoint=adjoint,
    )


def loss(call: Callable[..., Tensor], part: Part) -> Tensor:
    return call(part.x_T, cond={"z": part.z}, noise=part.noise).square().mean()


def expected(network: Network, adjoint: sa.Adjoint, steps: int = STEPS) -> dict[str, Tensor | None]:
    """The weights' gradients in one process with the whole batch: of plain autograd, where that has them."""
    exact = not isinstance(adjoint, sa.Truncated | sa.ContinuousAdjoint)
    call = sampler(network, adjoint, steps)
    call.adjoint = sa.Direct() if exact else adjoint
    loss(call, Part()).backward()
    return {name: parameter.grad for name, parameter in network.named_parameters()}


@functools.cache
def usual(adjoint: sa.Adjoint, steps: int = STEPS, *, unused: bool = False) -> dict[str, Tensor | None]:
    """The same of a network as it is made, once for all programs of a process."""
    return expected(Network(unused=unused), adjoint, steps)


def whole(tensor: Tensor | None) -> Tensor | None:
    """A sharded gradient, put together."""
    full = getattr(tensor, "full_tensor", None)
    return tensor if full is None else full()


def farthest(module: nn.Module, want: dict[str, Tensor | None]) -> float:
    """The largest relative error of a gradient; one that should not be there, or is missing, is infinitely wrong."""
    worst = 0.0
    for name, parameter in module.named_parameters():
        right = want[name.replace("module.", "").replace("_fsdp_wrapped_module.", "")]
        got = whole(parameter.grad)
        if right is None or got is None:
            # Whoever reduces a gradient that nobody has gives zeros.
            worst = max(worst, 0.0 if right is None and (got is None or not got.any()) else float("inf"))
        else:
            worst = max(worst, float((got - right).norm() / right.norm()))
    return worst


def trained(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


# The programs. Each returns the error of the gradients in each iteration, and how many numbers were reduced in it.


def iterations(network: Network, call: Callable[..., Tensor], part: Part, want: dict[str, Any]) -> dict[str, Any]:
    """Two, as wrappers are not the same in their first and their second; counting is slow, and done in one."""
    errors = []
    for counting in (False, True):
        network.zero_grad()
        reductions = Reductions()
        with reductions if counting else contextlib.nullcontext():
            loss(call, part).backward()
        errors.append(farthest(network, want))
    return {"errors": errors, "reduced": [reductions.numbers / trained(network)]}


MODES: dict[str, dict[str, bool]] = {
    "plain": {},
    "static_graph": {"static_graph": True},
    "find_unused_parameters": {"find_unused_parameters": True},
    "gradient_as_bucket_view": {"gradient_as_bucket_view": True},
}


def replicated(mode: str, outside: bool, adjoint: sa.Adjoint, steps: int, rank: int, world: int) -> dict[str, Any]:
    """``DistributedDataParallel`` around the sampler, or around the network in it."""
    unused = mode == "find_unused_parameters"
    network, part = Network(unused=unused), Part(rank, world)
    want = usual(adjoint, steps, unused=unused)
    if outside:
        call: nn.Module = DistributedDataParallel(sampler(network, adjoint, steps), **MODES[mode])
    else:
        call = sampler(DistributedDataParallel(network, **MODES[mode]), adjoint, steps)
    return iterations(network, call, part, want)


def by_time(outside: bool, adjoint: sa.Adjoint, rank: int, world: int) -> dict[str, Any]:
    """Weights that some steps use and others do not, under the wrapper that looks for unused ones."""
    network, part, steps = Experts(), Part(rank, world), 4
    want = expected(Experts(), adjoint, steps)
    options = MODES["find_unused_parameters"]
    if outside:
        call: nn.Module = DistributedDataParallel(sampler(network, adjoint, steps), **options)
    else:
        call = sampler(DistributedDataParallel(network, **options), adjoint, steps)
    return iterations(network, call, part, want)


def accumulated(outside: bool, adjoint: sa.Adjoint, rank: int, world: int) -> dict[str, Any]:
    """The part in two halves, the first under ``no_sync``."""
    network, part = Network(), Part(rank, world)
    want = usual(adjoint)
    wrapped = DistributedDataParallel(sampler(network, adjoint) if outside else network)
    call: nn.Module = wrapped if outside else sampler(wrapped, adjoint)
    with Reductions() as reductions:
        for k in range(2):
            half = Part(2 * rank + k, 2 * world)
            with wrapped.no_sync() if k == 0 else contextlib.nullcontext():
                (loss(call, half) / 2).backward()
    assert len(part.x_T) == 2
    return {"errors": [farthest(network, want)], "reduced": [reductions.numbers / trained(network)]}


def compressed(adjoint: sa.Adjoint, rank: int, world: int) -> dict[str, Any]:
    """Gradients that travel in bfloat16: off by its rounding of each process's, and no more."""
    network, part = Network(), Part(rank, world)
    parts = []
    for k in range(world):
        alone = Network()
        loss(sampler(alone, sa.Direct()), Part(k, world)).backward()
        parts.append({name: parameter.grad for name, parameter in alone.named_parameters()})
    call = DistributedDataParallel(sampler(network, adjoint))
    # PyTorch takes its own hook, by its name, on accelerators only; the arithmetic is the same anywhere.
    call.register_comm_hook(None, lambda state, bucket: bf16_compress_hook(state, bucket))
    with Reductions() as reductions:
        loss(call, part).backward()
    off = 0.0
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None
        own = [one[name] for one in parts]
        mean, size = sum(own) / world, sum(g.abs() for g in own)
        # Each is rounded once, and so is their sum: in ulps of bfloat16, which are 2^-8 of a number.
        off = max(off, float(((parameter.grad - mean).abs() / (2**-8 * size)).max()))
    return {"ulps": off, "reduced": [reductions.numbers / trained(network)]}


def sharded(outside: bool, policy: str, adjoint: sa.Adjoint, rank: int, world: int) -> dict[str, Any]:
    """``fully_shard`` of each block, and of the sampler or the network in it."""
    made = with_adapters if policy == "adapters" else lambda network: network
    network, part = made(Network()), Part(rank, world)
    options: dict[str, Any] = {"reshard_after_forward": policy != "kept"}
    want = expected(made(Network()), adjoint) if policy == "adapters" else usual(adjoint)
    if policy == "mixed":  # everything is computed in single precision, and added up in double
        options["mp_policy"] = MixedPrecisionPolicy(param_dtype=torch.float32, reduce_dtype=DOUBLE)
        one, all_of_it = Network().float(), Part()
        x_T, z = all_of_it.x_T.float(), all_of_it.z.float()
        call = sampler(one, adjoint)
        call.adjoint = sa.Direct()
        call(x_T, cond={"z": z}, noise=all_of_it.noise).square().mean().backward()
        want = {name: p.grad if p.grad is None else p.grad.double() for name, p in one.named_parameters()}
    call = sampler(network, adjoint)
    for block in network.blocks:
        fully_shard(block, **options)
    fully_shard(call if outside else network, **options)
    return iterations(network, call, part, want)


def learned(adjoint: sa.Adjoint, rank: int, world: int) -> dict[str, Any]:
    """``fully_shard`` of a sampler that has parameters in its conditioning and in its noise."""

    def made() -> sa.Sampler:
        call, base = sampler(Network().requires_grad_(False), adjoint), Part()
        z = nn.Parameter(torch.linspace(-1, 1, 6, dtype=DOUBLE).reshape(1, 6))
        dB = base.noise.increments(call.frame, call.grid, base.x_T).mean(1, keepdim=True).expand(-1, 2, -1)
        noise = sa.FixedNoise(nn.Parameter(dB.clone()))
        arguments = {"frame": call.frame, "grid": call.grid, "solver": call.solver, "adjoint": adjoint}
        return sa.Sampler(call.denoiser, cond={"z": z}, noise=noise, **arguments)

    one, call, part = made(), made(), Part(rank, world)
    halves = [one(Part(k, 2).x_T).square().mean() / 2 for k in range(2)]
    sum(halves).backward()
    fully_shard(call)
    call(part.x_T).square().mean().backward()
    return {"errors": [farthest(call, {name: p.grad for name, p in one.named_parameters()})], "reduced": [1.0]}


def flat(outside: bool, keep_names: bool, adjoint: sa.Adjoint, rank: int, world: int) -> dict[str, Any]:
    """``FullyShardedDataParallel``."""
    network, part = Network(), Part(rank, world)
    want = usual(adjoint)
    options: dict[str, Any] = {"use_orig_params": keep_names, "device_id": torch.device("cpu")}
    if outside:
        call: nn.Module = FullyShardedDataParallel(sampler(network, adjoint), **options)
    else:
        call = sampler(FullyShardedDataParallel(network, **options), adjoint)
    loss(call, part).backward()
    wrapped = call if outside else call.denoiser.network
    assert isinstance(wrapped, FullyShardedDataParallel)
    with FullyShardedDataParallel.summon_full_params(wrapped, with_grads=True):
        return {"errors": [farthest(network, want)], "reduced": [1.0]}


def accelerated(outside: bool, adjoint: sa.Adjoint, rank: int, world: int) -> dict[str, Any]:
    """``accelerate``: prepare, backward and accumulate, of the sampler or of the network in it."""
    from accelerate import Accelerator

    network, want = Network(), usual(adjoint)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    assert accelerator.num_processes == world
    wrapped = accelerator.prepare(sampler(network, adjoint) if outside else network)
    call = wrapped if outside else sampler(wrapped, adjoint)
    with Reductions() as reductions:
        for k in range(2):
            with accelerator.accumulate(wrapped):
                accelerator.backward(loss(call, Part(2 * rank + k, 2 * world)))
    accelerator.free_memory()
    return {"errors": [farthest(network, want)], "reduced": [reductions.numbers / trained(network)]}


def gathered(rank: int, world: int) -> dict[str, Any]:
    """The samples of all processes, against those of one."""
    part, call = Part(rank, world), sampler(Network(), sa.Checkpoint())
    with torch.no_grad():
        mine = call(part.x_T, cond={"z": part.z}, noise=part.noise)
        found = [torch.zeros_like(mine) for _ in range(world)]
        dist.all_gather(found, mine)
        want = call(Part().x_T, cond={"z": Part().z}, noise=Part().noise)
    return {"errors": [float((torch.cat(found) - want).abs().max())], "reduced": [1.0]}


PLACES = (("sampler", True), ("network", False))


def table() -> dict[str, Program]:
    """All programs by name."""
    found: dict[str, Program] = {"samples": gathered}
    for p, (place, outside) in enumerate(PLACES):
        for a, (name, adjoint) in enumerate(ADJOINTS.items()):
            for m, mode in enumerate(MODES):
                # The modes are DDP's own: each adjoint meets each mode in one place, and each mode each place.
                turn = (p + a + m) % 2 == 0 and not isinstance(adjoint, sa.Direct | sa.ContinuousAdjoint)
                if mode == "plain" or turn:
                    found[f"DDP {mode}, {place}, {name}"] = functools.partial(replicated, mode, outside, adjoint, STEPS)
            found[f"FSDP2 plain, {place}, {name}"] = functools.partial(sharded, outside, "plain", adjoint)
        for a, name in enumerate(("Checkpoint", "Checkpoint(memory)")):
            adjoint = ADJOINTS[name]
            if (p + a) % 2 == 0:
                found[f"DDP no_sync, {place}, {name}"] = functools.partial(accumulated, outside, adjoint)
            for k, policy in enumerate(("mixed", "adapters", "kept")):
                if (p + a + k) % 2 == 0:  # every two of policy, place and adjoint once, as above
                    found[f"FSDP2 {policy}, {place}, {name}"] = functools.partial(sharded, outside, policy, adjoint)
        found[f"accelerate, {place}"] = functools.partial(accelerated, outside, sa.Checkpoint())
        found[f"DDP experts by time, {place}"] = functools.partial(by_time, outside, sa.Checkpoint())
        found[f"DDP nine steps, {place}"] = functools.partial(replicated, "plain", outside, sa.Checkpoint(), 9)
        for keep in (True, False):
            found[f"FSDP1 use_orig_params={keep}, {place}"] = functools.partial(flat, outside, keep, sa.Checkpoint())
    found["DDP bf16 hook, sampler"] = functools.partial(compressed, sa.Checkpoint())
    found["FSDP2 learned conditioning, sampler"] = functools.partial(learned, sa.Checkpoint())
    return found


TABLE = table()


@pytest.fixture(scope="module")
def forking() -> Iterator[Executor]:
    """The process that starts all others of this file."""
    with parent() as made:
        yield made


@pytest.fixture(scope="module")
def results(forking: Executor, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Any]]]:
    """What all programs return in two processes."""
    return forking.submit(run_ranks, TABLE, 2, tmp_path_factory.mktemp("two_ranks")).result()


REFUSED = {
    "FSDP1": r"FullyShardedDataParallel \(FSDP1\).*fully_shard \(FSDP2\).*the whole Sampler",
}


def tolerance(name: str) -> float:
    if "mixed" in name:
        return 1e-5  # eighty ulps of float32
    return 1e-9 if "Reversible" in name else CLOSE  # its way back amplifies round-off


@pytest.mark.parametrize("name", TABLE)
def test_every_wrapper_gives_the_gradient_of_one_process_or_refuses(
    name: str, results: dict[str, list[dict[str, Any]]]
) -> None:
    for found in results[name]:
        sentence = next((sentence for start, sentence in REFUSED.items() if name.startswith(start)), None)
        if sentence is not None:
            assert "raised" in found, f"not refused: {found}"
            assert re.search(sentence, found["raised"]), found["traceback"]
            continue
        assert "raised" not in found, found["traceback"]
        if "ulps" in found:
            assert found["ulps"] <= 2
        else:
            assert max(found["errors"]) <= tolerance(name), found
        if "Direct" not in name or "DDP" in name:  # fully_shard reduces once per pass through a block
            assert found["reduced"] == [1.0] * len(found["reduced"]), found


# The guide's programs.


# It has no option for several processes without GPUs; the programs look for these themselves.
ACCELERATE = ("accelerate.commands.launch", "--multi_gpu", "--num_processes=2", "--num_machines=1")
ACCELERATE += ("--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0")


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The guide's programs, in the working directory, from which they can be imported."""
    text = (ROOT / "docs" / "several_gpus.md").read_text()
    found = dict(re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", text, flags=re.DOTALL | re.MULTILINE))
    for name, program in found.items():
        (tmp_path / name).write_text(program)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return found


def printed(text: str) -> tuple[int, float]:
    """How many processes there were, and the sum of the weights."""
    (found,) = re.findall(r"^weights after (\d+) processes: (.*)$", text, flags=re.MULTILINE)
    return int(found[0]), float(found[1])


def same_weights(program: str, launched: str, capfd: pytest.CaptureFixture[str]) -> None:
    """A program that was launched in two processes printed what it prints in one."""
    capfd.readouterr()
    exec(compile(program, "alone", "exec"), {"__name__": "__main__"})
    alone, together = printed(capfd.readouterr().out), printed(launched)
    assert (alone[0], together[0]) == (1, 2)
    # Single precision, and a sum of eighty weights of size one.
    assert together[1] == pytest.approx(alone[1], abs=1e-4)


def test_the_programs_of_the_guide(
    programs: dict[str, str], forking: Executor, capfd: pytest.CaptureFixture[str]
) -> None:
    script = Path("finetune.py").resolve()
    launched = forking.submit(torchrun, ["--standalone", "--nproc_per_node=2"], script).result()
    same_weights(programs[script.name], launched, capfd)


@pytest.mark.whole_run
@pytest.mark.parametrize("name", ["finetune.py", "finetune_accelerate.py"])
def test_the_programs_of_the_guide_by_accelerate(
    name: str, programs: dict[str, str], capfd: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *ACCELERATE, name],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    same_weights(programs[name], done.stdout, capfd)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_any_number_of_processes_draws_the_same_samples(world: int) -> None:
    """By the places of samples in the whole batch; each process's call needs none of the others."""
    call, one = sampler(Network(), sa.Checkpoint()), Part()
    with torch.no_grad():
        want = call(one.x_T, cond={"z": one.z}, noise=one.noise)
        parts = [Part(rank, world) for rank in range(world)]
        found = [call(part.x_T, cond={"z": part.z}, noise=part.noise) for part in parts]
    grid, frame = sa.uniform_logsnr(SCHEDULE, STEPS), sa.Frame(SCHEDULE, 1.0)
    paths = [part.noise.increments(frame, grid, part.x_T) for part in parts]
    assert torch.equal(torch.cat(paths, 1), one.noise.increments(frame, grid, one.x_T))
    # Products of other shapes sum in another order.
    torch.testing.assert_close(torch.cat(found), want, rtol=1e-12, atol=1e-12)
