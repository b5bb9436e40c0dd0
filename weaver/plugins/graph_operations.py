"""What a custom loss may call, by the names that torch.fx gives to it. Whatever is not listed here is refused.

Listed is what computes tensors from tensors and numbers: nothing random, nothing in place, nothing that leaves torch,
nothing whose cost is not bounded by the sizes of its arguments and its result.
"""

from typing import Final


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


_ELEMENTWISE: Final = """
    abs absolute neg negative positive exp exp2 expm1 log
    log2 log10 log1p sqrt rsqrt square reciprocal sin cos tan asin acos atan sinh cosh tanh asinh acosh atanh
    sigmoid logit relu erf erfc erfinv lgamma digamma floor ceil round trunc frac sign sgn isnan isinf isfinite
    nan_to_num logical_not bitwise_not add sub subtract mul multiply div divide true_divide floor_divide
    remainder fmod pow float_power maximum minimum fmax fmin atan2 arctan2 logaddexp logaddexp2 hypot xlogy lerp
    eq ne not_equal lt less le less_equal gt greater ge greater_equal logical_and logical_or logical_xor
    bitwise_and bitwise_or bitwise_xor isclose where clamp clip clamp_min clamp_max addcmul addcdiv masked_fill
    heaviside copysign deg2rad
"""
_REDUCTIONS: Final = """
    sum mean prod std var max min amax amin aminmax argmax argmin all any norm logsumexp
    median nanmean nansum count_nonzero dot mv mm bmm matmul softmax log_softmax cumsum cumprod cummax cummin
    logcumsumexp
"""
_SHAPES: Final = """
    reshape ravel flatten unflatten squeeze unsqueeze transpose swapaxes permute movedim t flip roll
    broadcast_to tile tril triu diagonal outer gather take_along_dim index_select select narrow scatter
    scatter_add sort argsort topk detach clone masked_select repeat_interleave
"""
_BOTH: Final = _names(_ELEMENTWISE + _REDUCTIONS + _SHAPES)

_TORCH: Final = _BOTH | _names(
    """
    rsub std_mean var_mean cat concat concatenate stack hstack vstack column_stack zeros ones full
    arange linspace eye zeros_like ones_like full_like cosine_similarity functional.norm functional.tensordot
    functional.atleast_1d functional.atleast_2d _C._special.special_expm1 _C._special.special_log1p
    _C._special.special_expit _C._special.special_logit _C._special.special_logsumexp _C._special.special_softmax
    _C._special.special_log_softmax _C._special.special_entr _C._special.special_xlogy
    _C._special.special_xlog1py _C._special.special_erf _C._special.special_exp2 _C._linalg.linalg_vector_norm
    _C._linalg.linalg_norm _C._nn.gelu _C._nn.softplus _C._nn.log_sigmoid _C._nn.softshrink nn.functional.relu
    nn.functional.relu6 nn.functional.elu nn.functional.celu nn.functional.selu nn.functional.silu
    nn.functional.mish nn.functional.leaky_relu nn.functional.hardtanh nn.functional.hardsigmoid
    nn.functional.hardswish nn.functional.softsign nn.functional.tanhshrink nn.functional._threshold
    nn.functional.softmax nn.functional.log_softmax nn.functional.softmin nn.functional.l1_loss
    nn.functional.mse_loss nn.functional.smooth_l1_loss nn.functional.huber_loss nn.functional.kl_div
    nn.functional.binary_cross_entropy nn.functional.binary_cross_entropy_with_logits
    nn.functional.margin_ranking_loss nn.functional.soft_margin_loss nn.functional.poisson_nll_loss
    nn.functional.normalize nn.functional.pad
    """
)
_OPERATOR: Final = _names(
    """
    add sub mul truediv floordiv mod pow neg pos abs invert matmul eq ne lt le gt ge and_ or_ xor getitem
    """
)
_MATH: Final = _names("sqrt exp expm1 log log2 log10 log1p pow fabs floor ceil tanh")

FUNCTIONS: Final = (
    frozenset(f"torch.{name}" for name in _TORCH)
    | frozenset(f"operator.{name}" for name in _OPERATOR)
    | frozenset(f"math.{name}" for name in _MATH)
    | {"getattr"}
)
METHODS: Final = _BOTH | _names(
    """
    size dim ndimension numel float double half bfloat16 long int short bool to type_as contiguous view view_as
    reshape_as expand expand_as repeat new_zeros new_ones new_full
    """
)
TENSOR_ATTRIBUTES: Final = frozenset({"shape", "ndim", "dtype", "device", "T", "mT"})
TUPLE_ATTRIBUTES: Final = frozenset({"values", "indices"})

MATRIX_PRODUCTS: Final = frozenset({"mm", "bmm", "mv", "dot", "matmul", "functional.tensordot"})
"""Their work grows faster than their arguments and results."""

KEYWORDS: Final = _names(
    """
    input other dim dims axis keepdim dtype device layout memory_format min max alpha beta value values
    descending stable largest sorted correction unbiased rounding_mode reduction diagonal offset dim1 dim2
    shifts repeats size sizes start end step steps fill_value nan posinf neginf p ord eps delta threshold
    negative_slope min_val max_val pad mode weight pos_weight log_target log_input full target index mask
    exponent k tensors condition margin approximate source src length n tensor tensor1 tensor2 vec mat2 vec2 x1
    x2 dim0 dim1 start_dim end_dim equal_nan rtol atol copy non_blocking base shape size_average reduce
    _stacklevel out inplace requires_grad
    """
)
FIXED: Final = {"out": None, "inplace": False, "requires_grad": False, "size_average": None, "reduce": None}
"""Keywords that torch.fx writes down with what they are when nobody uses them; other values are refused."""

WORDS: Final = frozenset({"none", "mean", "sum", "batchmean", "floor", "trunc", "constant", "tanh", "fro"})
"""The strings an argument may be."""

CONSTANTS: Final = {
    "dtype": _names(
        "float32 float float64 double float16 half bfloat16 int64 long int32 int int16 short int8 uint8 bool"
    ),
    "device": frozenset({"cpu"}),
    "layout": frozenset({"strided"}),
    "memory_format": frozenset({"contiguous_format", "preserve_format"}),
}
