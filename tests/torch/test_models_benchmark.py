"""The benchmark of PyTorch's models: its networks, its modes, its promises, and a whole run of tiny ones."""

import json
import os
import sys
from itertools import chain, product

import pytest
import torch
from torch import nn

from benchmarks import torch_models, torch_networks
from benchmarks.measure import Record
from benchmarks.targets import Run
from benchmarks.torch_models import (
    BARE,
    COMPILED,
    COMPILED_CONVERTED,
    CONVERTED,
    EAGER,
    FUSED,
    MODES,
    ROWS,
    STEP,
    THROUGH_COMPILE,
    Row,
    Trained,
)
from benchmarks.torch_networks import CLASSES, NETWORKS, without_norms
from benchmarks.workers import environment, in_new_process
from numbabn.torch.conversion import Joined
from tests.support.jit import needs_jit

NOT_COMPILED = [mode for mode in MODES if mode not in THROUGH_COMPILE]
TINY = (
    Row("tiny", (4, 3, 6, 6), "NCHW"),
    Row("tiny", (4, 3, 6, 6), "channels_last"),
    Row("tiny transformer", (2, 5, 8)),
)


@pytest.fixture
def tiny(monkeypatch):
    """Put tiny networks in the place of the real ones, in turns of two steps in this process."""

    def network():
        layers = *torch_networks.convolution(3, 4), nn.ReLU(inplace=True), torch_networks.BasicBlock(4, 8, 2)
        return nn.Sequential(*layers, *torch_networks.classifier(8))

    monkeypatch.setitem(NETWORKS, "tiny", network)
    monkeypatch.setitem(
        NETWORKS, "tiny transformer", lambda: torch_networks.transformer(nn.LayerNorm, 8, 1, 2)
    )
    monkeypatch.setattr(torch_models, "ROWS", TINY)
    monkeypatch.setattr(torch_models, "SECONDS", 0.0)
    monkeypatch.setattr(torch_models, "in_new_process", lambda threads, function, *given: function(*given))


# The networks -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "parameters", "norms"),
    [
        # Of image networks those of torchvision's models of these names, with 1000 classes.
        ("MobileNetV2", 3_504_872, 52),
        ("ResNet-18", 11_689_512, 20),
        # 4 blocks of 12 * 256**2 weights, 9 * 256 biases and 2 norms, the last norm, and 257 * 1000.
        ("transformer, LayerNorm", 4 * (12 * 256**2 + 9 * 256 + 2 * 512) + 512 + 257_000, 9),
        ("transformer, RMSNorm", 4 * (12 * 256**2 + 9 * 256 + 2 * 256) + 256 + 257_000, 9),
    ],
)
def test_networks_have_the_parameters_of_their_papers(name, parameters, norms):
    network = NETWORKS[name]()
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters
    assert sum(isinstance(module, torch_networks.NORMS) for module in network.modules()) == norms
    bare = without_norms(network)
    assert not any(isinstance(module, torch_networks.NORMS) for module in bare.modules())


@pytest.mark.parametrize(("name", "joined"), [("MobileNetV2", 35), ("ResNet-18", 9)])
def test_fusing_joins_every_norm_that_a_relu_follows(name, joined):
    """One in each block that widens, one for each depthwise or first convolution, and those outside."""
    network = MODES[FUSED](NETWORKS[name]())
    assert sum(isinstance(module, Joined) for module in network.modules()) == joined


@pytest.mark.parametrize("bare", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_compute_finite_logits(name, bare):
    torch.manual_seed(0)
    network = without_norms(NETWORKS[name]()) if bare else NETWORKS[name]()
    x = torch.randn(2, 6, 256) if name.startswith("transformer") else torch.randn(2, 3, 32, 32)
    logits = network(x)
    assert logits.shape == (*x.shape[: -1 if x.dim() == 3 else 1], CLASSES)
    assert 0.1 < float(logits.detach().std()) < 10  # near 1: neither vanishing nor overflowing


# The rows and modes -----------------------------------------------------------------------------------------


def test_rows_are_all_networks_in_their_layouts():
    names = {row.name for row in ROWS}
    images = product(("MobileNetV2", "ResNet-18"), ("16x3x224x224", "32x3x96x96"), ("NCHW", "channels_last"))
    encoders = {f"transformer, {norm} 16x128x256" for norm in ("LayerNorm", "RMSNorm")}
    assert names == {" ".join(parts) for parts in images} | encoders
    assert {row.network for row in ROWS} == set(NETWORKS)


def test_channels_last_is_not_compiled():
    assert TINY[0].modes(through_compile=True) == [NOT_COMPILED, list(THROUGH_COMPILE)]
    for row in TINY:
        assert row.modes(through_compile=False) == [NOT_COMPILED]
    assert TINY[1].modes(through_compile=True) == [NOT_COMPILED]


@needs_jit
@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize("row", TINY, ids=lambda row: row.name)
def test_steps_train_the_weights_of_every_mode_alike(row):
    """The second loss depends on the first step's gradients, which a large learning rate makes visible."""
    losses = {}
    for mode in NOT_COMPILED:
        torch.manual_seed(0)
        network = NETWORKS[row.network]().to(memory_format=row.memory_format)
        trained = Trained(network, mode, torch_models.Batch.of(row))
        trained.sgd.param_groups[0]["lr"] = 0.1
        losses[mode] = [trained.step(), trained.step()]
    first, second = losses[EAGER]
    assert abs(second - first) > 1e-2
    for mode in (CONVERTED, FUSED):
        assert losses[mode] == pytest.approx(losses[EAGER], rel=1e-5)  # some roundings of float32
    assert losses[BARE][0] != pytest.approx(first, rel=1e-3)


@pytest.mark.parametrize("wrong", [2.001, float("nan")])
def test_a_mode_that_computes_something_else_is_refused(wrong):
    torch_models.agree({EAGER: 2.0, CONVERTED: 2.00001, BARE: 7.0})
    with pytest.raises(RuntimeError, match=r"convert: the first loss differs from PyTorch's by"):
        torch_models.agree({EAGER: 2.0, CONVERTED: wrong})


# The promises -----------------------------------------------------------------------------------------------


def records(times):
    """Return a run in which a mode takes the same time, or the time of its layout, in all rows."""
    return [
        Record(STEP, row, mode, each, each, 1)
        for row in ROWS
        for mode in chain(*row.modes(through_compile=True))
        if (each := times.get((mode, row.layout), times.get((mode, row.network), times.get(mode))))
        is not None
    ]


def targets(times):
    return {target.promise: target for target in torch_models.check(records(times))}


def test_every_promise_is_met_at_its_bound_and_missed_beyond():
    times = {EAGER: 135.0, COMPILED: 90.0, COMPILED_CONVERTED: 90.0, FUSED: 100.0, CONVERTED: 100.0}
    met = targets(times)
    assert len(met) == 7
    assert all(target.met for target in met.values())
    slower = {CONVERTED: 136.0, FUSED: 137.0, COMPILED_CONVERTED: 91.0}
    missed = targets(times | slower)
    assert not any(target.met for target in missed.values())


@pytest.mark.parametrize(
    ("mode", "time", "missed"),
    [
        ((CONVERTED, "NCHW"), 108.5, "MobileNetV2, NCHW: convert at least 1.25x PyTorch"),
        ((CONVERTED, "channels_last"), 100.5, "MobileNetV2, channels_last: convert at least 1.35x PyTorch"),
        ((CONVERTED, "transformer, RMSNorm"), 136.0, "no row slower with convert than with PyTorch"),
        ((FUSED, "MobileNetV2"), 101.0, "MobileNetV2: convert(fuse=True) at least as fast as convert"),
        ((CONVERTED, "ResNet-18"), 131.5, "ResNet-18: convert at least 1.03x PyTorch"),
        (
            (COMPILED_CONVERTED, "ResNet-18"),
            91.0,
            "no row slower with convert, torch.compile than with torch.compile",
        ),
    ],
)
def test_a_promise_is_missed_by_its_own_rows(mode, time, missed):
    times = {EAGER: 135.0, COMPILED: 90.0, COMPILED_CONVERTED: 90.0, FUSED: 100.0, CONVERTED: 100.0}
    found = targets(times | {mode: time})
    assert [promise for promise, target in found.items() if not target.met] == [missed]


def test_the_share_is_what_a_step_takes_more_than_without_norms():
    found = torch_models.shares(Run(records({EAGER: 10.0, CONVERTED: 8.0, BARE: 6.0})))
    assert found[FUSED] == {}
    assert found[EAGER] == pytest.approx(dict.fromkeys(ROWS, 0.4))
    assert found[CONVERTED] == pytest.approx(dict.fromkeys(ROWS, 0.25))


# A whole run ------------------------------------------------------------------------------------------------


def run(monkeypatch, *options):
    monkeypatch.setattr(sys, "argv", ["torch_models", *options])
    torch_models.main()


@needs_jit
@pytest.mark.usefixtures("tiny")
def test_a_run_without_compiling_leaves_its_files(monkeypatch, tmp_path, capsys):
    run(monkeypatch, "--no-compile", "--rounds", "1", "--threads", "1", "--output", str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"torch_models.md", "torch_models.json"}
    page = (tmp_path / "torch_models.md").read_text()
    assert page in capsys.readouterr().out
    headers = [line for line in page.splitlines() if line.startswith(("| times", "| part", "| ms"))]
    modes = " | ".join(NOT_COMPILED)
    assert headers == [
        f"| times as fast | {CONVERTED} | {FUSED} |",
        f"| part of the step | {EAGER} | {CONVERTED} | {FUSED} |",
        *2 * [f"| ms | {modes} |"],
    ]
    numbers = json.loads((tmp_path / "torch_models.json").read_text())
    assert [(row["name"], row["library"]) for row in numbers["rows"]] == [
        (row.name, mode) for row in TINY for mode in NOT_COMPILED
    ]
    for row in numbers["rows"]:
        assert 0 < row["median_ms"] <= row["p90_ms"]
        assert row["calls"] == 2
    assert list(numbers["shares"][EAGER]) == [row.name for row in TINY]


@needs_jit
@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
@pytest.mark.filterwarnings("ignore")  # torch.compile uses what PyTorch itself has deprecated
def test_compiled_modes_are_timed(monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_COMPILE_THREADS", "1")
    found = torch_models.measure(TINY[0], list(THROUGH_COMPILE), rounds=1)
    assert [record.library for record in found] == list(THROUGH_COMPILE)


def test_a_new_process_has_the_environment(monkeypatch):
    for name in environment(3):
        monkeypatch.setenv(name, "")  # and put it back afterwards
    assert in_new_process(3, os.getenv, "OMP_NUM_THREADS") == "3"
    assert in_new_process(3, os.getpid) != os.getpid()


@pytest.mark.parametrize(
    ("options", "left_out"),
    [
        (["--no-compile"], "torch.compile"),
        (["--rounds", "1"], "2 of 3 rounds"),
        (["--rows", "ResNet"], "6 of 10 rows"),
    ],
)
def test_only_a_run_of_everything_replaces_the_results(options, left_out, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "--write", *options)
    assert f"leaves out {left_out};" in capsys.readouterr().err
