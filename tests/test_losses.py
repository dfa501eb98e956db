"""What holds for every loss: values, gradients, blocks of rows, half precision and errors, on every array library."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import cases
import numpy as np
import pytest
from cases import KINDS, NESTING, call, leaves, put
from conftest import Library, load

from matryoshka import Nesting

WITH_GRAD = [kind for kind, case in KINDS.items() if hasattr(case, "with_grad")]


def every(*kinds: str, options: tuple[str, ...] = ()) -> Any:
    """Run a test for these kinds of losses with these options, or with all that they have."""
    pairs = [(kind, name) for kind in kinds for name in KINDS[kind].options if not options or name in options]
    return pytest.mark.parametrize(("kind", "options"), pairs)


def given_as(library: Library, options: cases.Options) -> Iterator[dict[str, Any]]:
    """Put options on a library; a temperature may be a number, too."""
    yield put(library, dict(options))
    if "temperature" in options:
        yield put(library, {**options, "temperature": float(options["temperature"])})


@every(*KINDS)
def test_the_loss_is_the_sum_over_prefixes(eager_library: Library, kind: str, options: str) -> None:
    case = KINDS[kind]
    arrays = put(eager_library, case.arrays())
    for reduction in ("mean", "sum", "none"):
        expected, expected_parts = case.oracle(case.arrays(), reduction=reduction, **case.options[options])
        for given in given_as(eager_library, {**case.options[options], "reduction": reduction}):
            total, parts = case.loss(arrays, return_parts=True, **given)
            eager_library.assert_close(total, expected)
            eager_library.assert_close(parts, expected_parts)
            eager_library.assert_close(case.loss(arrays, **given), expected)


@every(*WITH_GRAD)
def test_gradients_are_the_slopes_of_the_loss(eager_library: Library, kind: str, options: str) -> None:
    """The gradient in the temperature comes whether it is a number or an array, which may be learned."""
    case = KINDS[kind]
    rtol = max(eager_library.rtol, 1e-8 if kind.startswith("info-nce") else 1e-9)
    for reduction in ("mean", "sum"):
        expected, expected_parts = case.oracle(case.arrays(), reduction=reduction, **case.options[options])
        slopes = cases.expected_gradients(kind, options, reduction)
        for given in given_as(eager_library, {**case.options[options], "reduction": reduction}):
            (total, parts), gradients = case.with_grad(put(eager_library, case.arrays()), return_parts=True, **given)
            eager_library.assert_close(total, expected)
            eager_library.assert_close(parts, expected_parts)
            for actual, slope in zip(leaves(gradients), slopes, strict=True):
                eager_library.assert_close(actual, slope, rtol=rtol)


def test_gradients_come_in_a_field_per_argument() -> None:
    mrl = call("mrl-no-bias", "with_grad")[1]
    assert (mrl._fields, mrl.embeddings.shape) == (("embeddings", "heads"), (6, 7))
    assert [(weight.shape, bias) for weight, bias in mrl.heads] == [((4, m), None) for m in NESTING]
    mrl_e = call("mrl-e", "with_grad")[1]
    assert (mrl_e._fields, mrl_e.weight.shape, mrl_e.bias.shape) == (("embeddings", "weight", "bias"), (4, 7), (4,))
    assert call("mrl-e-no-bias", "with_grad")[1].bias is None
    assert call("info-nce", "with_grad")[1]._fields == ("queries", "keys", "temperature")


@every("mrl", "mrl-e", "info-nce", options=("plain", "all-options"))
def test_row_blocks_change_nothing(eager_library: Library, kind: str, options: str) -> None:
    case = KINDS[kind]
    arrays, given = put(eager_library, (case.arrays(), dict(case.options[options])))

    def results(row_block: int | None) -> list[Any]:
        rows = case.loss(arrays, reduction="none", row_block=row_block, **given)
        return [rows, *leaves(case.with_grad(arrays, row_block=row_block, **given))]

    expected = [eager_library.to_numpy(array) for array in results(None)]
    for row_block in (1, 3, 4, 5, 6, 100):  # there are 6 rows, and 5 queries
        for actual, array in zip(results(row_block), expected, strict=True):
            eager_library.assert_close(actual, array)


@every(*WITH_GRAD, options=("all-options",))
def test_arguments_are_left_as_they_were(eager_library: Library, kind: str, options: str) -> None:
    case = KINDS[kind]
    original = case.arrays(), dict(case.options[options])
    arrays, given = put(eager_library, original)
    case.loss(arrays, row_block=4, **given)
    case.with_grad(arrays, row_block=4, **given)
    after, before = ((value[0], *value[1].values()) for value in ((arrays, given), put(eager_library, original)))
    for left, right in zip(leaves(after), leaves(before), strict=True):
        if isinstance(right, bool | int | float):
            assert left == right
        else:
            np.testing.assert_array_equal(eager_library.to_numpy(left), eager_library.to_numpy(right))


@pytest.mark.parametrize("kind", WITH_GRAD)
def test_importance_0_contributes_nothing_and_is_reported(kind: str) -> None:
    (total, parts), gradients = call(kind, "with_grad", return_parts=True)
    heavy = Nesting(NESTING.dims, importance=(2.0, 1.0, 0.5))
    np.testing.assert_allclose(parts, call(kind, nesting=heavy, return_parts=True)[1], rtol=1e-14)
    np.testing.assert_allclose(total, 2.0 * parts[0] + 0.5 * parts[2], rtol=1e-14)
    if kind in ("mrl", "mrl-no-bias"):
        assert not any(array.any() for array in leaves(gradients.heads[1]))


@every("mrl", "mrl-e", "info-nce", options=("plain", "symmetric"))
def test_half_precision_gives_a_float32_loss(half: Library, kind: str, options: str) -> None:
    case = KINDS[kind]
    arrays = put(half, case.arrays())
    rounded = on_host(half, arrays)
    (given,) = list(given_as(half, case.options[options]))[-1:]
    total, gradients = case.with_grad(arrays, **given)
    assert str(total.dtype).endswith("float32")
    expected = case.oracle(rounded, **case.options[options])[0]
    np.testing.assert_allclose(half.to_numpy(total), expected, rtol=half.rtol)
    slopes = cases.slopes(kind, rounded, **case.options[options])
    for gradient, array, slope in zip(leaves(gradients), leaves(arrays), slopes, strict=False):
        assert gradient.dtype == array.dtype
        values = half.to_numpy(gradient).astype(np.float64)
        np.testing.assert_allclose(values, slope, rtol=2 * half.rtol, atol=half.rtol * np.abs(slope).max())


def on_host(library: Library, value: Any) -> Any:
    if isinstance(value, tuple | list):
        return type(value)([on_host(library, item) for item in value])
    return None if value is None else library.to_numpy(value).astype(np.float64)


@pytest.mark.parametrize("kind", WITH_GRAD)
def test_gradients_of_none_are_refused(kind: str) -> None:
    with pytest.raises(ValueError, match="`reduction` must be one of 'mean', 'sum', got 'none'"):
        call(kind, "with_grad", reduction="none")


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        *(("mrl-e", name) for name in ("weight", "bias", "labels", "sample_weight")),
        *(("info-nce", name) for name in ("keys", "temperature")),
    ],
)
def test_arrays_of_two_libraries_or_devices_are_refused(kind: str, name: str) -> None:
    strict, case = load("array_api_strict"), KINDS[kind]
    options = case.options["weighted" if kind == "mrl-e" else "plain"]
    arrays = {**dict(zip(case.names, case.arrays(), strict=True)), **options}
    elsewhere = strict.asarray(arrays[name], device=strict.Device("device1"))
    first = case.names[0]
    with pytest.raises(TypeError, match=rf"`{first}` and `{name}` must come from one array library, got numpy"):
        call(kind, **{**arrays, name: elsewhere})
    here = {key: strict.asarray(value, device=strict.Device("CPU_DEVICE")) for key, value in arrays.items()}
    with pytest.raises(ValueError, match=rf"`{first}` and `{name}` must lie on one device, got .*CPU.* and .*1"):
        call(kind, **{**here, name: elsewhere})
