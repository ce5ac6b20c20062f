"""Names are resolved to sources: configs, fingerprints, tokenizers and the hub."""

import json
import shutil
from pathlib import Path
from unittest.mock import Mock

import huggingface_hub
import pytest
from huggingface_hub.errors import RevisionNotFoundError

from s1jax.checkpoint.export import save_params
from s1jax.checkpoint.source import load_model, load_tokenizer, resolve_source
from s1jax.runtime.errors import UserError
from tests.support.checkpoints import RULES, TINY, FakeHub, assert_same, load, mesh_of, tiny_tensors, write_checkpoint
from tests.support.tokenizers import byte_tokenizer


def test_the_fingerprint_of_a_source_changes_with_its_config_and_its_weight_files(tmp_path):
    source = write_checkpoint(tmp_path / "in", tiny_tensors())
    assert resolve_source(source).fingerprint == resolve_source(shutil.copytree(source, tmp_path / "copy")).fingerprint
    found = {resolve_source(source).fingerprint}
    for name, change in (("theta", dict(rope_theta=5.0)), ("dtype", {})):
        tensors = tiny_tensors(dtype="BF16" if name == "dtype" else "F32")
        found.add(resolve_source(write_checkpoint(tmp_path / name, tensors, **change)).fingerprint)
    save_params(tmp_path / "orbax", *load(source), source)
    found.add(resolve_source(tmp_path / "orbax").fingerprint)
    next((tmp_path / "orbax" / "params").rglob("d/*")).write_bytes(b"")
    found.add(resolve_source(tmp_path / "orbax").fingerprint)
    assert len(found) == 5


YARN = {"rope_type": "yarn", "factor": 4.0}


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        (dict(hidden_size=32.0), r"hidden_size is 32\.0: it must be a positive whole number"),
        (
            dict(vocab_size=None, head_dim=-8),
            r"vocab_size is null: it must be a positive whole number below 2\*\*31; head_dim is -8: it must be a positive",
        ),
        (dict(num_attention_heads=0), "num_attention_heads is 0: it must be a positive"),
        (dict(num_key_value_heads="2"), 'num_key_value_heads is "2": it must be a positive whole number'),
        (dict(num_hidden_layers=True), "num_hidden_layers is true: it must be a positive whole number"),
        (
            dict(max_position_embeddings=2**31),
            r"max_position_embeddings is 2147483648: it must be a positive whole number below 2\*\*31",
        ),
        (dict(rope_theta=-5), "rope_theta is -5: it must be a positive"),
        (dict(rms_norm_eps=float("nan")), "rms_norm_eps is NaN: it must be a positive finite number"),
        (
            dict(rope_parameters=YARN | {"rope_theta": float("inf")}),
            "rope_theta is Infinity: it must be a positive finite number",
        ),
        (dict(rope_scaling=YARN | {"factor": 0}), "factor is 0: it must be a positive"),
        (dict(rope_scaling=YARN | {"factor": None}), "yarn without a factor"),
        (
            dict(rope_scaling=YARN | {"original_max_position_embeddings": 0.5}),
            "embeddings is 0.5: it must be a positive whole number",
        ),
        (dict(rope_scaling=YARN | {"attention_factor": -1.0}), "attention_factor is -1.0: it must be a positive"),
        (dict(rope_scaling="yarn"), 'rope_parameters or rope_scaling is "yarn": it must be an object'),
        (dict(head_dim=7), "head_dim is 7: it must be even"),
        (dict(tie_word_embeddings="yes"), 'tie_word_embeddings is "yes": it must be true or false'),
        (dict(use_sliding_window=0), "use_sliding_window is 0: it must be true or false"),
        (dict(num_hidden_layers="4"), 'num_hidden_layers is "4": it must be a positive whole number'),
        (dict(rms_norm_eps="1e-6"), 'rms_norm_eps is "1e-6": it must be a positive finite number'),
        (dict(rope_theta=10**400), r"rope_theta is 10{59}\.\.\.: it must be a positive finite number"),
    ],
)
def test_a_number_that_no_model_can_have_is_named_with_its_field_and_file(tmp_path, changes, fault):
    (tmp_path / "config.json").write_text(json.dumps(TINY | changes))
    with pytest.raises(ValueError, match=f"{tmp_path}/config.json: .*{fault}"):
        resolve_source(tmp_path, weights=False).model_config()


def test_numbers_that_may_be_left_out_may_be_null(tmp_path):
    optional = ("head_dim", "num_key_value_heads", "max_position_embeddings", "rms_norm_eps", "rope_theta")
    (tmp_path / "config.json").write_text(json.dumps(TINY | dict.fromkeys(optional)))
    nulls = resolve_source(tmp_path, weights=False).model_config()
    (tmp_path / "config.json").write_text(json.dumps({k: v for k, v in TINY.items() if k not in optional}))
    assert (
        nulls == resolve_source(tmp_path, weights=False).model_config()
        and nulls.num_kv_heads == 4
        and nulls.head_dim == 8
    )


@pytest.mark.parametrize("text", ["{", "[]", "[" * 10**5, "\udcff"])
def test_a_broken_config_is_not_reported_as_a_broken_tokenizer(tmp_path, text):
    (tmp_path / "config.json").write_text(text, errors="surrogateescape")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"config\.json(:| is not) ") as caught:
        load_tokenizer(resolve_source(tmp_path, weights=False))
    assert "damaged" not in str(caught.value)


def test_the_hubs_refusal_is_one_line(monkeypatch):
    monkeypatch.setattr(RevisionNotFoundError, "__init__", OSError.__init__)  # its own arguments vary with the version
    error = RevisionNotFoundError("404 Client Error.\n\nRevision Not Found for url: x.")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", Mock(side_effect=error))
    reason = r"RevisionNotFoundError: 404 Client Error. Revision Not Found for url: x.\)$"
    with pytest.raises(
        ValueError, match=rf"^there is no directory a/b@v9 in {Path.cwd()}, and the Hugging Face hub .*\({reason}"
    ):
        resolve_source("a/b@v9")


def test_a_tokenizer_that_is_absent_or_broken_is_named(tmp_path):
    source = write_checkpoint(tmp_path / "in", tiny_tensors())
    with pytest.raises(ValueError, match="has no tokenizer"):
        load_tokenizer(resolve_source(source))
    for text, message in (
        ('{"broken"', r"tokenizer\.json is not JSON: "),
        ("[]", r"tokenizer\.json: it is not a JSON object"),
        ('{"model": {"type": "Unigram", "vocab": 3}}', "cannot load the tokenizer"),
        ("\udcff", r"tokenizer\.json is not UTF-8"),
    ):
        (source / "tokenizer.json").write_text(text, errors="surrogateescape")
        with pytest.raises(UserError, match=message) as caught:
            load_tokenizer(resolve_source(source))
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("num_spare", [0, -1])
def test_a_tokenizer_has_no_token_without_an_embedding(tmp_path, num_spare):
    """Here for training and generation: both load their tokenizer before anything else is computed or loaded."""
    tokenizer = byte_tokenizer(ordinary=["<|tool|>"])
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(TINY | {"vocab_size": len(tokenizer) + num_spare}))
    source = resolve_source(tmp_path, weights=False)
    if num_spare == 0:
        assert len(load_tokenizer(source)) == 260
        return
    with pytest.raises(UserError, match=r"token '<\|tool\|>' with id 259, but the model's vocab_size is 259: use the"):
        load_tokenizer(source)


def test_fields_of_a_config_that_nobody_reads_are_named_once(tmp_path, caplog):
    caplog.set_level("INFO")
    source = resolve_source(write_checkpoint(tmp_path / "in", tiny_tensors(), attention_dropout=0.1, hobby="chess"))
    source.model_config()
    (message,) = caplog.messages
    assert message == f"{source.files}/config.json has fields that are not read: attention_dropout, hobby"


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub whose model has other weights at every commit."""
    directories = [write_checkpoint(tmp_path / f"in{i}", tiny_tensors(seed=i)) for i in range(3)]
    fake = FakeHub(tmp_path / "snapshots", directories)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_the_hub_is_asked_for_a_commit_once_and_the_weights_come_from_that_commit(hub):
    source = resolve_source("a/b", weights=False)
    first, directory = next(iter(hub.commits.items()))
    assert source.revision == source.fingerprint == first and source.weights is None and source.kind == "hugging_face"
    assert not list(source.directory.glob("*.safetensors"))
    _, params = load_model(source, mesh_of(), RULES, "stacked", "float32")
    assert_same(params, load(directory, param_dtype="float32")[1])
    assert hub.calls == [("a/b", None, False), ("a/b", first, True)]


def test_a_source_with_weights_is_downloaded_once(hub):
    source = resolve_source("a/b")
    load_model(source, mesh_of(), RULES, "stacked", "float32")
    assert source.fingerprint == next(iter(hub.commits)) and source.tokenizer_fingerprint
    assert hub.calls == [("a/b", None, True)]


@pytest.mark.parametrize("revision", ["v1.0", "refs/pr/3", f"{2:040x}"])
def test_a_revision_of_a_hub_id_is_given_after_an_at_sign(hub, revision):
    source = resolve_source(f"a/b@{revision}", weights=False)
    assert source.name == f"a/b@{revision}" and source.revision in hub.commits
    assert source.with_weights().revision == source.revision
    assert hub.calls == [("a/b", revision, False), ("a/b", source.revision, True)]


@pytest.mark.parametrize("name", ["a/b@", "@main"])
def test_a_name_with_half_a_revision_is_refused(name, hub):
    with pytest.raises(UserError, match=f"the name {name} is incomplete: it must be HUB_ID@REVISION"):
        resolve_source(name)
    assert not hub.calls


def test_a_directory_may_have_an_at_sign_in_its_name_and_has_no_revision(tmp_path, hub):
    directory = write_checkpoint(tmp_path / "a@b", tiny_tensors())
    source = resolve_source(directory)
    assert (source.directory, source.weights, source.files, source.revision) == (directory, directory, directory, None)
    assert not hub.calls


def test_a_directory_without_weights_gives_its_config_but_no_model_and_no_fingerprint(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    source = resolve_source(tmp_path, weights=False)
    assert source.kind == "config" and source.model_config().num_layers == 3
    for needs_weights in (lambda: resolve_source(tmp_path), source.with_weights, lambda: source.fingerprint):
        with pytest.raises(UserError, match=r"is not a checkpoint: it has no model\.safetensors"):
            needs_weights()
