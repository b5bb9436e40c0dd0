"""TensorData on the installed SDK and on ours: the same numbers, or errors of the same class."""

import dataclasses
import math

import numpy as np
import pytest
import tinker as theirs
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import weaver.compat.tinker as ours

NAN = float("nan")
SPARSE = torch.eye(6)


def csr(t, crow=(0, 1, 1), col=(2,), data=(5.0,), shape=(2, 3), dtype="float32"):
    return t.TensorData(list(data), dtype, list(shape), list(crow), list(col))


MAKERS = {
    "positional": lambda t: t.TensorData([1, 2], "int64", [2]),
    "no dtype": lambda t: t.TensorData([1, 2]),
    "unknown dtype": lambda t: t.TensorData([1], "int32"),
    "nothing at all": lambda t: t.TensorData(dtype="int64"),
    "floats as int64": lambda t: t.TensorData([1.5, 2.0], "int64"),
    "ints as float32": lambda t: t.TensorData([1, 2], "float32"),
    "text": lambda t: t.TensorData(["a"], "int64"),
    "ragged": lambda t: t.TensorData([[1], [1, 2]], "int64"),
    "nested": lambda t: t.TensorData([[1, 2], [3, 4]], "int64"),
    "reshaped": lambda t: t.TensorData([1, 2, 3, 4], "int64", [2, 2]),
    "shape that does not fit": lambda t: t.TensorData([1, 2, 3], "int64", [2, 2]),
    "too large": lambda t: t.TensorData([2**63], "int64"),
    "flat data": lambda t: t.TensorData([[1, 2], [3, 4]], "int64").data,
    "data of sparse rows": lambda t: csr(t).data,
    "a keyword nobody has": lambda t: t.TensorData(values=[1], dtype="int64"),
    "float64 array": lambda t: t.TensorData.from_numpy(np.array([[1.5], [NAN]])),
    "float16 array": lambda t: t.TensorData.from_numpy(np.array([1.5], np.float16)),
    "int32 array": lambda t: t.TensorData.from_numpy(np.array([3], np.int32)),
    "unsigned array": lambda t: t.TensorData.from_numpy(np.array([3], np.uint8)),
    "bool array": lambda t: t.TensorData.from_numpy(np.array([True])),
    "a number's array": lambda t: t.TensorData.from_numpy(np.array(2.0)),
    "a list as an array": lambda t: t.TensorData.from_numpy([1.0]),
    "bfloat16": lambda t: t.TensorData.from_torch(torch.tensor([1.5, 2.25], dtype=torch.bfloat16)),
    "float16 tensor": lambda t: t.TensorData.from_torch(torch.tensor([1.5], dtype=torch.float16)),
    "bool tensor": lambda t: t.TensorData.from_torch(torch.tensor([True])),
    "tensor with a gradient": lambda t: t.TensorData.from_torch(torch.ones(2, requires_grad=True)),
    "transposed tensor": lambda t: t.TensorData.from_torch(torch.arange(6).reshape(2, 3).T),
    "sparse rows": lambda t: t.TensorData.from_torch_sparse(SPARSE),
    "sparse rows of ints": lambda t: t.TensorData.from_torch_sparse(SPARSE.to(torch.int32)),
    "sparse rows of bools": lambda t: t.TensorData.from_torch_sparse(SPARSE.bool()),
    "sparse rows with a pad": lambda t: t.TensorData.from_torch_sparse((SPARSE - 1).long(), pad_value=-1),
    "a full matrix": lambda t: t.TensorData.from_torch_sparse(torch.ones(6, 6)),
    "a matrix just too full": lambda t: t.TensorData.from_torch_sparse(torch.tensor([[1, 0, 0, 0], [0, 0, 0, 0]])),
    "a matrix with a nan": lambda t: t.TensorData.from_torch_sparse(SPARSE * NAN),
    "no rows": lambda t: t.TensorData.from_torch_sparse(torch.ones(0, 6)),
    "three dimensions": lambda t: t.TensorData.from_torch_sparse(torch.zeros(2, 2, 2)),
    "a pad that is a float": lambda t: t.TensorData.from_torch_sparse(SPARSE, pad_value=0.0),
    "a pad that is a bool": lambda t: t.TensorData.from_torch_sparse(SPARSE, pad_value=True),
    "a pad of numpy": lambda t: t.TensorData.from_torch_sparse(SPARSE, pad_value=np.int32(0)),
    "rows filled up": lambda t: csr(t).to_numpy(),
    "rows filled up with a pad": lambda t: csr(t, dtype="int64").to_numpy(-100),
    "rows as torch": lambda t: csr(t).to_torch(7),
    "rows as lists": lambda t: csr(t).tolist(),
    "rows with a pad that is a float": lambda t: csr(t).to_numpy(1.5),
    "rows without columns": lambda t: t.TensorData([5.0], "float32", [2, 3], [0, 1, 1]).to_numpy(),
    "rows without shape": lambda t: t.TensorData([5.0], "float32", None, [0, 1, 1], [2]).to_numpy(),
    "a column outside": lambda t: csr(t, col=[3]).to_numpy(),
    "a column below": lambda t: csr(t, col=[-1]).to_numpy(),
    "a column twice": lambda t: csr(t, crow=[0, 2, 2], col=[2, 2], data=[1.0, 2.0]).to_numpy(),
    "columns that descend": lambda t: csr(t, crow=[0, 2, 2], col=[2, 1], data=[1.0, 2.0]).to_numpy(),
    "columns that start again": lambda t: csr(t, crow=[0, 1, 2], col=[2, 1], data=[1.0, 2.0]).to_numpy(),
    "rows that decrease": lambda t: csr(t, crow=[0, 2, 1]).to_numpy(),
    "rows that do not start at 0": lambda t: csr(t, crow=[1, 1, 1]).to_numpy(),
    "too few rows": lambda t: csr(t, crow=[0, 1]).to_numpy(),
    "fewer columns than data": lambda t: csr(t, col=[]).to_numpy(),
    "rows of a vector": lambda t: csr(t, shape=[3]).to_numpy(),
    "an empty matrix": lambda t: csr(t, crow=[0, 0, 0], col=[], data=[]).to_numpy(),
    "dense as torch": lambda t: t.TensorData([1, 2], "int64").to_torch(),
    "replaced": lambda t: dataclasses.replace(t.TensorData([1], "int64"), dtype="float32"),
    "assigned": lambda t: setattr(t.TensorData([1], "int64"), "dtype", "float32"),
    "equal": lambda t: t.TensorData([1], "int64") == t.TensorData([1], "int64"),
    "printed": lambda t: repr(csr(t)),
}  # fmt: skip


@pytest.mark.parametrize("case", MAKERS)
def test_the_same_lines_do_the_same(assert_same, case):
    assert_same(MAKERS[case])


@settings(max_examples=150, deadline=None)
@given(
    arrays.arrays(
        st.sampled_from([np.float32, np.int64]),
        arrays.array_shapes(min_dims=2, max_dims=2, min_side=0, max_side=9),
        elements=st.sampled_from([0, 0, 0, 0, -1, 7]),
    ),
    st.sampled_from([0, -1, 7]),
)
def test_any_matrix_becomes_the_same_rows_and_comes_back(assert_same, matrix, pad):
    assert_same(lambda t: t.TensorData.from_torch_sparse(torch.from_numpy(matrix), pad))
    assert_same(lambda t: t.TensorData.from_torch_sparse(torch.from_numpy(matrix), pad).to_numpy(pad))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(-1, 4), max_size=5),
    st.lists(st.integers(-1, 4), max_size=4),
    # At least one row: torch does not read the pointers of a matrix without rows, we do.
    st.one_of(st.tuples(st.integers(1, 3)), st.tuples(st.integers(1, 3), st.integers(0, 3))),
)
def test_any_rows_fill_the_same_matrix_or_are_refused_by_both(assert_same, crow, col, shape):
    assert_same(lambda t: csr(t, crow, col, [1.0] * len(col), shape).to_numpy())


def test_a_matrix_of_bfloat16_is_thinned_out_where_the_sdk_fails(outcome_of):
    assert outcome_of(lambda t: t.TensorData.from_torch_sparse(SPARSE.bfloat16()), theirs) == "TypeError"
    ours_made = ours.TensorData.from_torch_sparse(SPARSE.bfloat16())
    assert ours_made.dtype == "float32"
    assert ours_made.to_numpy().tolist() == SPARSE.tolist()
    assert math.prod(ours_made.shape) > len(ours_made.data)


def test_an_array_is_kept_without_a_copy_as_the_sdk_keeps_it():
    for library in (ours, theirs):
        array = np.zeros(3, np.float32)
        assert library.TensorData.from_numpy(array).to_numpy() is array
        fixed = np.frombuffer(array.tobytes(), np.float32)
        assert library.TensorData.from_numpy(fixed).to_numpy().flags.writeable
