"""Gradient caching: a batch in pieces gives the loss and the gradients of the same batch as a whole."""

from __future__ import annotations

import collections
import copy
import weakref
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from conftest import load
from processes import SECONDS, results_of

torch = load("torch")
distributed = load("torch.distributed")
modules = load("matryoshka.torch")
CachedStep, InfoNCE = modules.CachedStep, modules.InfoNCE

NESTING = (2, 3, 7)
N_PROCESSES = 2
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
HAS_GLOO = distributed.is_available() and distributed.is_gloo_available()


def draw(*shape: int, seed: int, dtype: Any = torch.float64) -> Any:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def network(*, dropout: float = 0.0, seed: int = 0, dtype: Any = torch.float64) -> Any:
    torch.manual_seed(seed)
    layers = torch.nn.Linear(5, 11), torch.nn.Tanh(), torch.nn.Dropout(dropout), torch.nn.Linear(11, 7)
    return torch.nn.Sequential(*layers).to(dtype)


def info_nce(**options: Any) -> Any:
    return InfoNCE(NESTING, **{"temperature": 0.3, "learnable_temperature": True, "dtype": torch.float64, **options})


def gradients(*owners: Any) -> list[Any]:
    return [parameter.grad for owner in owners for parameter in owner.parameters()]


def assert_same(found: list[Any], expected: list[Any], **tolerance: float) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert other.abs().max() > 1e-4
        torch.testing.assert_close(one, other, **tolerance)


@pytest.mark.parametrize("mini_batch", [1, 3, 10, 100])
def test_pieces_give_the_loss_and_gradients_of_the_whole(mini_batch: int) -> None:
    """Those of a temperature that is learned too; keys may be more than queries."""
    queries, keys = draw(10, 5, seed=1), draw(14, 5, seed=2)
    encoder, loss = network(), info_nce(symmetric=True)
    plain_encoder, plain_loss = copy.deepcopy((encoder, loss))
    expected = plain_loss(plain_encoder(queries), plain_encoder(keys))
    expected.backward()
    found = CachedStep(encoder, loss, mini_batch=mini_batch)(queries, keys)
    assert not found.requires_grad
    torch.testing.assert_close(found, expected.detach(), rtol=1e-13, atol=0)
    assert_same(gradients(encoder, loss), gradients(plain_encoder, plain_loss), rtol=1e-11, atol=1e-14)


def test_gradients_are_added_as_backward_adds_them() -> None:
    encoder, batch = network(), (draw(10, 5, seed=1), draw(10, 5, seed=2))
    step = CachedStep(encoder, InfoNCE(NESTING), mini_batch=4)
    step(*batch)
    once = [gradient.clone() for gradient in gradients(encoder)]
    step(*batch)
    assert_same(gradients(encoder), [2 * gradient for gradient in once])


def test_each_input_may_have_an_encoder_of_its_own() -> None:
    images, texts = draw(9, 5, seed=1), draw(9, 3, 5, seed=2)
    encoders = network(), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(15, 7, dtype=torch.float64))
    plain = copy.deepcopy(encoders)
    info_nce()(plain[0](images), plain[1](texts)).backward()
    for given in (encoders, torch.nn.ModuleList(copy.deepcopy(encoders))):
        CachedStep(given, info_nce(), mini_batch=2)(images, texts)
        assert_same(gradients(*given), gradients(*plain))


class Pooled(torch.nn.Module):
    """Embeds the mean of some tokens, and writes what it finds into the batch, as sentence-transformers does."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(20, 7, dtype=torch.float64)

    def forward(self, batch: Any) -> Any:
        ids, mask = batch.values() if isinstance(batch, dict) else batch
        tokens = self.embedding(ids) * mask[..., None]
        if isinstance(batch, dict):
            batch["tokens"] = tokens
        return tokens.sum(1) / mask.sum(1, keepdim=True)


@pytest.mark.parametrize("kind", [dict, collections.UserDict, tuple, list])
def test_inputs_are_tensors_mappings_or_sequences(kind: Any) -> None:
    ids = torch.arange(40).reshape(10, 4) * 7 % 20
    mask = (ids % 3 > 0).double() + (torch.arange(4) == 0)
    batches = [{"input_ids": i, "attention_mask": mask} for i in (ids, ids.flip(0) + 0)]
    encoder = Pooled()
    plain = copy.deepcopy(encoder)
    info_nce()(*(plain(dict(batch)) for batch in batches)).backward()
    given = [kind(batch) if "Dict" in kind.__name__ or kind is dict else kind(batch.values()) for batch in batches]
    CachedStep(encoder, info_nce(), mini_batch=3)(*given)
    assert_same(gradients(encoder), gradients(plain))
    assert all(len(batch) == 2 for batch in given)  # what the encoder wrote went to the pieces


@pytest.mark.parametrize("device", DEVICES)
def test_dropout_draws_the_same_when_the_encoder_runs_again(device: str) -> None:
    """Against one backward pass through all pieces, whose masks are drawn in the same order."""
    batch = [draw(10, 5, seed=seed).to(device) for seed in (1, 2)]
    encoder = network(dropout=0.4).to(device)
    plain = copy.deepcopy(encoder)
    torch.manual_seed(5)
    expected = info_nce(device=device)(*(torch.cat([plain(piece) for piece in rows.split(3)]) for rows in batch))
    expected.backward()
    after = torch.rand(3, device=device)
    torch.manual_seed(5)
    found = CachedStep(encoder, info_nce(device=device), mini_batch=3)(*batch)
    torch.testing.assert_close(torch.rand(3, device=device), after)  # and what is drawn next is what would have been
    torch.testing.assert_close(found, expected.detach())
    assert_same(gradients(encoder), gradients(plain))


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_applies_to_both_runs(device: str) -> None:
    """Weights cast without a graph are no good for the second run."""
    batch = [draw(12, 5, seed=seed, dtype=torch.float32).to(device) for seed in (1, 2)]
    encoder = network(dtype=torch.float32).to(device)
    plain = copy.deepcopy(encoder)
    with torch.autocast(device, dtype=torch.bfloat16):
        expected = InfoNCE(NESTING, temperature=0.3)(*map(plain, batch))
    expected.backward()
    seen = []
    encoder.register_forward_hook(lambda module, given, found: seen.append((found.dtype, found.requires_grad)))
    with torch.autocast(device, dtype=torch.bfloat16):
        found = CachedStep(encoder, InfoNCE(NESTING, temperature=0.3), mini_batch=4)(*batch)
    assert seen == [(torch.bfloat16, False)] * 6 + [(torch.bfloat16, True)] * 6
    torch.testing.assert_close(found, expected.detach(), rtol=0.01, atol=0)
    assert_same(gradients(encoder), gradients(plain), rtol=0.05, atol=0.005)


def test_grad_scaler_scales_the_loss_where_it_is_computed() -> None:
    batch = draw(10, 5, seed=1), draw(10, 5, seed=2)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    encoder, plain = network(), network()
    loss = InfoNCE(NESTING, temperature=0.3)
    loss(*map(plain, batch)).backward()
    optimizer = torch.optim.SGD(encoder.parameters(), lr=1.0)
    before = [parameter.detach().clone() for parameter in encoder.parameters()]
    scaled = CachedStep(encoder, lambda *rows: scaler.scale(loss(*rows)), mini_batch=4)(*batch)
    torch.testing.assert_close(scaled / scaler.get_scale(), loss(*map(plain, batch)).detach())
    scaler.step(optimizer)
    scaler.update()
    moved = [old - new.detach() for old, new in zip(before, encoder.parameters(), strict=True)]
    assert_same(moved, gradients(plain))


def test_what_the_loss_draws_is_not_drawn_again() -> None:
    drawn = []

    def loss(rows: Any) -> Any:
        drawn.append(torch.rand(()))
        return rows.sum() * drawn[-1]

    torch.manual_seed(5)
    CachedStep(network(dropout=0.4), loss, mini_batch=4)(draw(10, 5, seed=1))
    assert torch.rand(()) != drawn[0]


def test_without_gradients_it_is_the_loss_alone() -> None:
    encoder, batch = network(), (draw(10, 5, seed=1), draw(10, 5, seed=2))
    calls = []
    encoder.register_forward_hook(lambda *_: calls.append(0))
    with torch.no_grad():
        found = CachedStep(encoder, info_nce(), mini_batch=5)(*batch)
    assert len(calls) == 4
    torch.testing.assert_close(found, info_nce()(*map(encoder, batch)).detach())
    assert gradients(encoder) == [None] * 4


def test_constants_and_frozen_encoders_are_left_alone() -> None:
    student, teacher, batch = network(seed=1), network(seed=2).requires_grad_(False), draw(10, 5, seed=1)
    plain = copy.deepcopy(student)
    torch.nn.functional.mse_loss(plain(batch), teacher(batch)).backward()
    for target in (teacher, copy.deepcopy(teacher).requires_grad_()):
        student.zero_grad()
        calls: list[int] = []
        hook = target.register_forward_hook(lambda *_, calls=calls: calls.append(0))
        constant = target is not teacher
        loss = lambda s, t, c=constant: torch.nn.functional.mse_loss(s, t.detach() if c else t)  # noqa: E731
        CachedStep((student, target), loss, mini_batch=4)(batch, batch)
        hook.remove()
        assert len(calls) == (3 if constant else 6)  # a constant is not embedded again
        assert_same(gradients(student), gradients(plain))
        assert gradients(target) == [None] * 4


def test_one_piece_has_activations_at_a_time() -> None:
    encoder, hidden, alive = network(), [], []

    def watch(module: Any, given: Any, found: Any) -> None:
        alive.append(sum(reference() is not None for reference in hidden))
        hidden.append(weakref.ref(found))

    encoder[1].register_forward_hook(watch)
    CachedStep(encoder, info_nce(), mini_batch=4)(draw(20, 5, seed=1), draw(20, 5, seed=2))
    assert alive == [0] * 20


def test_repr_tells_what_it_does() -> None:
    text = repr(CachedStep(torch.nn.Linear(5, 7), InfoNCE(NESTING), mini_batch=3))
    assert text.startswith("CachedStep(Linear(in_features=5, out_features=7")
    assert text.endswith("mini_batch=3)")


class Shrinking(torch.nn.Module):
    """Returns something else the second time."""

    def __init__(self, rows: slice, columns: slice) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(5, 7, dtype=torch.float64)
        self.rows, self.columns = rows, columns

    def forward(self, batch: Any) -> Any:
        found = self.linear(batch)
        return found[self.rows, self.columns] if found.requires_grad else found


BATCH = draw(6, 5, seed=1)
ALL, SOME = slice(None), slice(1)


@pytest.mark.parametrize(
    ("encoder", "inputs", "error", "message"),
    [
        (Shrinking(SOME, ALL), (BATCH, BATCH), ValueError, r"`encoder` .* of shape \(7,\), as .* 4 rows, .*\(1, 7\)"),
        (Shrinking(ALL, SOME), (BATCH, BATCH), ValueError, r"`encoder` .* of shape \(7,\), as .* 4 rows, .*\(4, 1\)"),
        (lambda batch: batch[:3], (BATCH, BATCH), ValueError, r"`encoder` .* each of its 4 rows, got shape \(3, 5\)"),
        (lambda batch: batch.sum(), (BATCH, BATCH), ValueError, r"`encoder` .* of its 4 rows, got shape \(\)"),
        (lambda batch: batch[:, : len(batch)], (BATCH,) * 2, ValueError, r"`encoder` .*\(4,\), as before, .*\(2, 2\)"),
        (lambda batch: (batch,), (BATCH, BATCH), TypeError, "`encoder` must return a tensor of .*, got tuple; select"),
        (network(), (), ValueError, "`inputs` must be at least one, got 0"),
        ([network(), network()], (BATCH,), ValueError, "`inputs` must be as many as encoders, 2, got 1"),
        (network(), (BATCH, BATCH[:0]), ValueError, r"`inputs\[1\]` must have .* rows, at least one, got \[0\]"),
        (network(), ({"a": BATCH, "b": BATCH[1:]},), ValueError, r"`inputs\[0\]` must have equally .*, got \[5, 6\]"),
        (network(), ({},), ValueError, r"`inputs\[0\]` must have equally many rows, at least one, got \[\]"),
        (network(), (BATCH, ["a text"]), TypeError, r"`inputs\[1\]` must be a tensor .*, got str 'a text'; convert"),
        (network(), (torch.tensor(1.0),), TypeError, r"`inputs\[0\]` must be a tensor \(rows, ...\)"),
        (network(), (BATCH, BATCH[:5]), ValueError, "`keys` must have a row for each of the 6 queries, got 5"),
    ],
)
def test_bad_batches_and_encoders_are_named(encoder: Any, inputs: Any, error: type[Exception], message: str) -> None:
    step = CachedStep(encoder, info_nce() if len(inputs) > 1 else (lambda rows: rows.sum()), mini_batch=4)
    with pytest.raises(error, match=message):
        step(*inputs)


def test_bad_losses_are_named() -> None:
    with pytest.raises(ValueError, match=r"`loss` must return one number, a tensor \(\), got shape \(6,\); take its"):
        CachedStep(network(), lambda rows: rows.sum(1), mini_batch=4)(BATCH)
    with pytest.raises(TypeError, match=r"`loss` must return a tensor \(\), got tuple; select it"):
        CachedStep(network(), lambda rows: (rows.sum(), 0), mini_batch=4)(BATCH)


def test_bad_options_are_refused_when_the_step_is_built() -> None:
    with pytest.raises(ValueError, match="`mini_batch` must be an integer >= 1, got 0"):
        CachedStep(network(), info_nce(), mini_batch=0)
    with pytest.raises(TypeError, match="`mini_batch` must be an integer"):
        CachedStep(network(), info_nce(), mini_batch=2.5)
    with pytest.raises(TypeError, match="`encoder` must be callable, got NoneType"):
        CachedStep(None, info_nce(), mini_batch=2)
    with pytest.raises(TypeError, match=r"`encoder\[1\]` must be callable, got str 'bert'"):
        CachedStep([network(), "bert"], info_nce(), mini_batch=2)
    with pytest.raises(ValueError, match="`encoder` must hold an encoder for each input, got none"):
        CachedStep([], info_nce(), mini_batch=2)
    with pytest.raises(TypeError, match="`loss` must be callable, got float 0.5"):
        CachedStep(network(), 0.5, mini_batch=2)


# More than one process


def halves() -> tuple[Any, Any]:
    return draw(2 * 7, 5, seed=1), draw(2 * 7, 5, seed=2)


def trained(rows: slice | None) -> list[Any]:
    """The gradients of one encoder for both inputs, and of one for each; of some rows in a process, or of all."""
    found = []
    for several in (False, True):
        encoders = [network(seed=seed) for seed in range(1 + several)]
        loss = info_nce(symmetric=True, gather=rows is not None)
        batch = halves() if rows is None else [array[rows] for array in halves()]
        if rows is None:
            loss(encoders[0](batch[0]), encoders[-1](batch[1])).backward()
        else:
            wrap = torch.nn.parallel.DistributedDataParallel
            wrapped = [wrap(encoder) for encoder in encoders]
            exchanges = [0] * len(wrapped)
            for i, one in enumerate(wrapped):
                one.register_comm_hook(i, lambda i, bucket, counts=exchanges: exchange(counts, i, bucket))
            CachedStep(wrapped if several else wrapped[0], wrap(loss), mini_batch=3)(*batch)
            assert exchanges == [1] * len(wrapped)
        found += gradients(*encoders, loss)
    return found


def exchange(counts: list[int], i: int, bucket: Any) -> Any:
    """What DistributedDataParallel does by itself, counted."""
    counts[i] += 1
    future = distributed.all_reduce(bucket.buffer() / N_PROCESSES, async_op=True).get_future()
    return future.then(lambda done: done.value()[0])


def work(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    rendezvous = Path(folder, "rendezvous").as_uri()
    limit = timedelta(seconds=SECONDS)
    distributed.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=N_PROCESSES, timeout=limit)
    torch.save(trained(slice(7 * rank, 7 * (rank + 1))), Path(folder, f"{rank}.pt"))
    distributed.barrier()
    distributed.destroy_process_group()


@pytest.mark.skipif(not HAS_GLOO, reason="this PyTorch has no gloo")
def test_two_processes_give_the_gradients_of_one_on_the_joined_batch(tmp_path: Path) -> None:
    """And exchange them once for each encoder, however many pieces there are."""
    expected = trained(None)
    for found in results_of(work, tmp_path, N_PROCESSES):
        assert_same(found, expected)
