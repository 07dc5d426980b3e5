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
HALF = LANES // 2     # for runs that are shorter: load_half


class Vector(types.Type):
    """The type of LANES (or HALF) numbers of one dtype."""

    def __init__(self, dtype, lanes=LANES):
        self.dtype, self.lanes = dtype, lanes
        super().__init__(name=f"Vector({dtype}, {lanes})")


@register_model(Vector)
class VectorModel(models.PrimitiveModel):
    def __init__(self, data_models, vector):
        super().__init__(data_models, vector, ir.VectorType(data_models[vector.dtype].get_value_type(), vector.lanes))


# ---- arithmetic ----

def _instruction(name):
    """builder.fadd and its like, lane by lane; a number stands for LANES equal ones."""
    @intrinsic
    def function(typing_context, a, b):
        vector = a if isinstance(a, Vector) else b

        def build(context, builder, signature, arguments):
            sides = [value if side == vector else _repeat(builder, context.cast(builder, value, side, vector.dtype), vector.lanes)
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
def load_half(typing_context, array, start):
    """array[start:start + HALF]"""
    def build(context, builder, signature, arguments):
        return _load(context, builder, array, *arguments, HALF)
    return Vector(array.dtype, HALF)(array, start), build


@intrinsic
def store(typing_context, array, start, vector):
    """array[start:start + LANES] = vector, or as many numbers as it has"""
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


@intrinsic
def prefetch(typing_context, array, index):
    """Ask the memory for array[index] and its neighbours, and do not wait. The index may lie outside: then nothing happens."""
    def build(context, builder, signature, arguments):
        pointer = builder.bitcast(_pointer(context, builder, array, *arguments), ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, ir.IntType(32), ir.IntType(32), ir.IntType(32)])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        builder.call(function, [pointer] + [ir.IntType(32)(value) for value in (0, 3, 1)])
        return context.get_dummy_value()
    return types.void(array, index), build


# ---- lanes ----

@intrinsic
def gather(typing_context, array, places, at, shift):
    """HALF vectors from LANES places, which need not be neighbours: vector k is array[places[at + lane] + shift + k] in each lane.

    It takes HALF numbers from each place and turns rows into columns, in squares of 8 x 8. A vector that nobody uses costs no
    instruction."""
    def build(context, builder, signature, arguments):
        array_value, places_value, at, shift = arguments
        rows = []
        for lane in range(LANES):
            place = builder.load(_pointer(context, builder, places, places_value, builder.add(at, at.type(lane))))
            rows.append(_load(context, builder, array, array_value, builder.add(place, shift), HALF))
        upper, lower = _transpose(builder, rows[:HALF]), _transpose(builder, rows[HALF:])
        vectors = [_choose(builder, *halves, range(LANES)) for halves in zip(upper, lower)]
        return context.make_tuple(builder, signature.return_type, vectors)
    return types.UniTuple(Vector(array.dtype), HALF)(array, places, at, shift), build


def _transpose(builder, rows):
    """Eight vectors of eight numbers -> those of their first, second, ... numbers. Three rounds, each of which pairs vectors as a processor
    does in one instruction: by ones, by twos, and at last by halves."""
    ones = [_choose(builder, rows[i], rows[i + 1], lanes) for i in range(0, 8, 2)
            for lanes in ((0, 8, 1, 9, 4, 12, 5, 13), (2, 10, 3, 11, 6, 14, 7, 15))]
    twos = [_choose(builder, ones[i + j], ones[i + j + 2], lanes) for i in (0, 4) for j in (0, 1)
            for lanes in ((0, 1, 8, 9, 4, 5, 12, 13), (2, 3, 10, 11, 6, 7, 14, 15))]
    return [_choose(builder, twos[k], twos[k + 4], lanes) for lanes in ((0, 1, 2, 3, 8, 9, 10, 11), (4, 5, 6, 7, 12, 13, 14, 15))
            for k in range(4)]


def _make_collect(step):
    """collect(vectors) -> vectors with the numbers lane by lane: the first of each vector, the second of each, ..."""
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


collect_2, collect_4 = _make_collect(2), _make_collect(4)


@intrinsic
def keep_where(typing_context, vector, mask, start):
    """The numbers of the lanes where mask[start:start + LANES] is not 0; 0 in the others, whatever was there."""
    def build(context, builder, signature, arguments):
        numbers, *place = arguments
        marks = _load(context, builder, mask, *place, LANES)
        kept = builder.fcmp_unordered("!=", marks, ir.Constant(marks.type, None))
        return builder.select(kept, numbers, ir.Constant(numbers.type, None))
    return vector(vector, mask, start), build


def _repeat(builder, number, lanes):
    one = builder.insert_element(ir.Constant(ir.VectorType(number.type, lanes), ir.Undefined), number, ir.IntType(32)(0))
    return _choose(builder, one, one, [0] * lanes)


def _choose(builder, a, b, lanes):
    """A vector of the numbers of a and b in these lanes, counted through both."""
    return builder.shuffle_vector(a, b, ir.Constant(ir.VectorType(ir.IntType(32), len(lanes)), list(lanes)))
