"""flash.torch as an attention of Hugging Face's transformers, on tiny models with random weights."""

from __future__ import annotations

import pytest

import flash

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")
from torch_tensors import calls_of_flash  # noqa: E402

import flash.torch  # noqa: E402

SIZES = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 32, "intermediate_size": 48, "vocab_size": 99}
GROUPED = SIZES | {"num_key_value_heads": 2, "head_dim": 8}
CONFIGS = {
    "gpt2": {"n_layer": 2, "n_head": 4, "n_embd": 32, "vocab_size": 99, "bos_token_id": 1, "eos_token_id": 2},
    "bert": SIZES,
    "llama": GROUPED,
    "mistral": GROUPED | {"sliding_window": 6},
    "gemma2": GROUPED | {"sliding_window": 6, "attn_logit_softcapping": 2.0},
    "gpt_oss": GROUPED | {"sliding_window": 6, "num_local_experts": 2, "num_experts_per_tok": 2},
    "t5": {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "vocab_size": 99},
}
WITHOUT_SDPA = "gemma2", "gpt_oss"
IDS = torch.randint(3, 99, (3, 12), generator=torch.Generator().manual_seed(0))
REAL = torch.arange(12) >= torch.tensor([[0], [5], [2]])  # the left of a sequence is padding


@pytest.fixture(params=CONFIGS)
def model(request):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(request.param, **CONFIGS[request.param])
    return transformers.AutoModel.from_config(config, attn_implementation="eager").eval()


@pytest.fixture
def calls(monkeypatch):
    return calls_of_flash(monkeypatch)


def outputs(model, mask):
    """The last hidden state where it means something, and the gradient of a parameter."""
    more = {"decoder_input_ids": IDS} if model.config.is_encoder_decoder else {}
    o = model(IDS, attention_mask=mask.long(), **more).last_hidden_state[mask]
    first = next(x for x in model.parameters() if x.requires_grad)
    return o, *torch.autograd.grad(o, first, torch.randn(o.shape, generator=torch.Generator().manual_seed(1)))


def assert_close(actual, wanted):
    """To rounding, as a share of the whole tensor's size."""
    for a, w in zip(actual, wanted, strict=True):
        assert torch.linalg.norm(a - w).item() < 1e-5 * torch.linalg.norm(w).item()


@pytest.mark.parametrize("mask", [REAL, torch.ones_like(REAL)], ids=["padded", "whole"])
def test_models_give_what_eager_attention_gives(model, mask, calls):
    wanted = outputs(model, mask)
    model.set_attn_implementation(flash.torch.register_transformers())
    assert_close(outputs(model, mask), wanted)
    layers = 3 * 2 if model.config.is_encoder_decoder else 2
    assert len(calls) == layers
    if model.config.model_type not in WITHOUT_SDPA:
        model.set_attn_implementation("sdpa")
        with flash.torch.use(strict=True):
            assert_close(outputs(model, mask), wanted)
        assert len(calls) == 2 * layers


def test_generation_with_a_cache(calls):
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model("llama", **CONFIGS["llama"])
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    options = {"attention_mask": REAL.long(), "max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    wanted = model.generate(IDS, **options)
    model.set_attn_implementation(flash.torch.register_transformers())
    assert torch.equal(model.generate(IDS, **options), wanted)
    assert len(calls) == 2 * 6


def test_names_with_flash_in_them_are_refused():
    with pytest.raises(flash.FlashValueError, match=r"name: must be without 'flash', .* got 'flash'"):
        flash.torch.register_transformers("flash")


def test_paged_caches_are_refused():
    from flash.torch.hugging_face import attention_forward

    q = torch.zeros(1, 2, 3, 8)
    with pytest.raises(flash.UnsupportedError, match="cache: paged caches aren't available"):
        attention_forward(None, q, q, q, None, cache=object())
