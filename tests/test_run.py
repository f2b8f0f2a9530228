"""Protects the speed of a training step, as far as a CPU can prove it, and that run.py measures on any device."""

import json

import pytest
import run
import torch
from measuring import count_operations, operations_of_a_step


def test_a_training_step_has_few_operations_beside_those_of_its_network():
    network, step = operations_of_a_step()
    assert network < step <= 1.25 * network


def test_operations_are_counted_forward_and_backward_without_views_and_allocations():
    weights = [torch.ones(3, requires_grad=True) for _ in range(2)]
    assert count_operations(lambda: torch.empty(4, 6).view(6, 4)[:, 1:].T) == 0
    assert count_operations(lambda: torch.ones(4).exp_()) == 2
    assert count_operations(lambda: torch._foreach_mul([w.detach() for w in weights], 2.0)) == 1
    assert count_operations(lambda: weights[0].exp().sum().backward()) == 4  # exp, sum, ones_like, mul


@pytest.mark.parametrize("names", [["--device", "cpu"], ["loss", "inference", "operations"]])
def test_every_measurement_runs_on_any_machine(names, tmp_path, capsys):
    run.main([*names, "--small", "--out", str(tmp_path), "--article", "none"])
    results = {file.stem: json.loads(file.read_text()) for file in tmp_path.iterdir()}
    expected = {f"{name}_cpu" for name in run.ON_DEVICE} if "--device" in names else set(names)
    assert results.keys() == expected
    printed = capsys.readouterr().out
    for name, result in results.items():
        assert result["ratio"] > 0 and result["what"] and result["small"]
        assert f"| {name.removesuffix('_cpu')} |" in printed


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused_in_one_sentence():
    with pytest.raises(SystemExit) as refused:
        run.main(["--device", "cuda"])
    assert "'cuda' cannot be used here" in refused.value.code and "\n" not in refused.value.code
