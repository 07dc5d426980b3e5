"""Sixteen numbers as one value in compiled code: what the processor's vector instructions work on.

The compiler makes vector instructions of simple loops by itself. It does not where a loop reads every fourth number, or keeps many sums at
once (a product of matrices, a tile's transform). There the kernels say what they mean, and still read like arithmetic on numbers:

    total = total + number(u, k) * load(v, LANES * k)

A value is LLVM's own vector type (LLVM is the compiler behind Numba). The processor takes it in two steps with AVX2, one with AVX-512, four
with NEON. Operators: + and - and * of two vectors, or of a vector and a number. Arrays are flat: 1-d, C-ordered. NOTHING checks an index
here, and there is no counting from the end: each caller sees to it that start .. start + LANES - 1 lies inside.

Each function below tells Numba the type of its result, and a `build` that writes LLVM's instructions.
"""

import operator

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

LANES = 16


class Vector(types.Type):
    """The type of LANES numbers of one dtype."""

    def __init__(self, dtype):
        self.dtype = dtype
        super().__init__(name=f"Vector({dtype})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, data_models, vector):
        super().__init__(data_models, vector, ir.VectorType(data_models[vector.dtype].get_value_type(), LANES))


# ---- arithmetic ----

def _instruction(name):
    """builder.fadd and its like, lane by lane; a number stands for LANES equal ones."""
    @intrinsic
    def function(typing_context, a, b):
        vector = a if isinstance(a, Vector) else b

        def build(context, builder, signature, arguments):
            sides = [value if side == vector else _repeat(builder, context.cast(builder, value, side, vector.dtype))
                     for side, value in zip(signature.args, arguments)]
            return getattr(builder, name)(*sides, flags=("contract",))     # a product and a sum may become one instruction
        return vector(a, b), build
    return function


_add, _subtract, _multiply = _instruction("fadd"), _instruction("fsub"), _instruction("fmul")


@overload(operator.add)
def _overload_add(a, b):
    if isinstance(a, Vector) or isinstance(b, Vector):
        return lambda a, b: _add(a, b)


@overload(operator.sub)
def _overload_subtract(a, b):
    if isinstance(a, Vector) or isinstance(b, Vector):
        return lambda a, b: _subtract(a, b)


@overload(operator.mul)
def _overload_multiply(a, b):
    if isinstance(a, Vector) or isinstance(b, Vector):
        return lambda a, b: _multiply(a, b)


@intrinsic
def relu(typing_context, vector):
    """0 where a number is below 0, else the number: NaN stays."""
    def build(context, builder, signature, arguments):
        zeros = ir.Constant(arguments[0].type, None)
        return builder.select(builder.fcmp_ordered("<", arguments[0], zeros), zeros, arguments[0])
    return vector(vector), build


@intrinsic
def zeros_like(typing_context, array):
    """LANES zeros of the array's dtype."""
    def build(context, builder, signature, arguments):
        return ir.Constant(ir.VectorType(context.get_data_type(array.dtype), LANES), None)
    return Vector(array.dtype)(array), build


# ---- memory ----

@intrinsic
def load(typing_context, array, start):
    """array[start:start + LANES]"""
    def build(context, builder, signature, arguments):
        return _load(context, builder, array, *arguments, LANES)
    return Vector(array.dtype)(array, start), build


@intrinsic
def store(typing_context, array, start, vector):
    """array[start:start + LANES] = vector"""
    def build(context, builder, signature, arguments):
        vector = arguments[2]
        pointer = builder.bitcast(_pointer(context, builder, array, *arguments[:2]), vector.type.as_pointer())
        builder.store(vector, pointer, align=array.dtype.bitwidth // 8)
        return context.get_dummy_value()
    return types.void(array, start, vector), build


@intrinsic
def number(typing_context, array, index):
    """array[index]"""
    def build(context, builder, signature, arguments):
        return builder.load(_pointer(context, builder, array, *arguments))
    return array.dtype(array, index), build


@intrinsic
def set_number(typing_context, array, index, value):
    """array[index] = value"""
    def build(context, builder, signature, arguments):
        builder.store(arguments[2], _pointer(context, builder, array, *arguments[:2]))
        return context.get_dummy_value()
    return types.void(array, index, array.dtype), build


def _pointer(context, builder, array_type, array, index):
    return builder.gep(cgutils.create_struct_proxy(array_type)(context, builder, array).data, [index])


def _load(context, builder, array_type, array, start, lanes):
    vector = ir.VectorType(context.get_data_type(array_type.dtype), lanes)
    pointer = builder.bitcast(_pointer(context, builder, array_type, array, start), vector.as_pointer())
    return builder.load(pointer, align=array_type.dtype.bitwidth // 8)


# ---- lanes ----

def _make_deal(step):
    """deal(array, start) -> `step` vectors from step * LANES neighbouring numbers: as cards to players, every step-th to the same one."""
    @intrinsic
    def deal(typing_context, array, start):
        def build(context, builder, signature, arguments):
            numbers = _load(context, builder, array, *arguments, step * LANES)
            vectors = [_choose(builder, numbers, numbers, range(player, step * LANES, step)) for player in range(step)]
            return context.make_tuple(builder, signature.return_type, vectors)
        return types.UniTuple(Vector(array.dtype), step)(array, start), build
    return deal


def _make_collect(step):
    """collect(vectors) -> vectors, the opposite: the numbers in the order in which deal found them."""
    @intrinsic
    def collect(typing_context, vectors):
        def build(context, builder, signature, arguments):
            numbers, *others = cgutils.unpack_tuple(builder, arguments[0], step)
            for other in others:     # one long vector, player after player; _choose wants two of a length
                length = numbers.type.count
                other = _choose(builder, other, other, [min(lane, LANES - 1) for lane in range(length)])
                numbers = _choose(builder, numbers, other, range(length + LANES))
            places = [(place % step) * LANES + place // step for place in range(step * LANES)]
            parts = [_choose(builder, numbers, numbers, places[start:start + LANES]) for start in range(0, step * LANES, LANES)]
            return context.make_tuple(builder, signature.return_type, parts)
        return vectors(vectors), build
    return collect


deal_2, deal_4, collect_2, collect_4 = _make_deal(2), _make_deal(4), _make_collect(2), _make_collect(4)


@intrinsic
def keep_lanes(typing_context, vector, first, behind):
    """The numbers of the lanes first .. behind - 1; 0 in the others, whatever was there."""
    def build(context, builder, signature, arguments):
        numbers, *ends = arguments
        lanes = ir.Constant(ir.VectorType(ir.IntType(32), LANES), list(range(LANES)))
        first, behind = (_repeat(builder, builder.trunc(end, ir.IntType(32))) for end in ends)
        kept = builder.and_(builder.icmp_signed(">=", lanes, first), builder.icmp_signed("<", lanes, behind))
        return builder.select(kept, numbers, ir.Constant(numbers.type, None))
    return vector(vector, types.intp, types.intp), build


def _repeat(builder, number):
    one = builder.insert_element(ir.Constant(ir.VectorType(number.type, LANES), ir.Undefined), number, ir.IntType(32)(0))
    return _choose(builder, one, one, [0] * LANES)


def _choose(builder, a, b, lanes):
    """A vector of the numbers of a and b in these lanes, counted through both."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes)))
