"""How a device computes: chosen once, stated, and without a trace in what is trained."""

import pytest
import torch

from batch_renorm.running.arithmetic import Arithmetic, choose_arithmetic, entries
from tests.conftest import TINY
from tests.running.runs import assert_close, final_state, trained

CPU = torch.device("cpu")


def test_auto_is_what_the_run_began_with(made):
    began = {"precision": "bf16", "compile": False}
    assert choose_arithmetic(made().machine, CPU, None) == Arithmetic(32, False, True, False)
    assert choose_arithmetic(made().machine, CPU, began) == Arithmetic("bf16", False, True, False)
    assert choose_arithmetic(made("trainer.precision=32").machine, CPU, began).precision == 32


def test_options_change_no_name_and_the_result_by_rounding_at_most(compose, tmp_path, monkeypatch):
    """Compiled by a backend that needs no C++ compiler."""

    def compile_eagerly(module, **options):
        module._compiled_call_impl = torch.compile(module._call_impl, backend="eager", **options)

    monkeypatch.setattr(torch.nn.Module, "compile", compile_eagerly)
    small = [*TINY, "data.labels=24", "model.head=32"]
    plain = final_state(trained(compose(*small), tmp_path / "plain").path)
    cases = (("precision", "bf16", 0.3), ("compile", "true", 3e-5), ("deterministic", "true", 0))
    for option, value, tolerance in cases:
        try:
            folder = trained(compose(*small, f"trainer.{option}={value}"), tmp_path / option)
        finally:
            torch.use_deterministic_algorithms(False)
        assert str(folder.record()["arithmetic"][option]).lower() == value
        other = final_state(folder.path)
        assert_close(other, plain, tolerance)  # dtypes, too
        differs = any(not torch.equal(tensor, other[name]) for name, tensor in plain.items())
        assert differs or option != "precision"


def test_a_gpu_without_bfloat16_says_so_and_computes_in_float32(made, monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla V100")
    assert choose_arithmetic(made().machine, gpu, None).precision == 32
    choice = choose_arithmetic(made().machine, gpu, {"precision": "bf16", "compile": False})
    assert choice.precision == 32
    assert entries(choice, gpu)["lacks"] == "bfloat16"
    with pytest.raises(ValueError, match=r"trainer.precision=bf16, but Tesla V100 has no bfloat16: say 32, or auto"):
        choose_arithmetic(made("trainer.precision=bf16").machine, gpu, None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (8, 0))
    assert choose_arithmetic(made().machine, gpu, None).precision == "bf16"
