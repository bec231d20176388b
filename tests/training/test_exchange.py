"""Exchange between devices counted in programs made by hand, against the numbers worked out by hand."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.sharding import PartitionSpec

from altclip_jax import parallel
from altclip_jax.planning import program as hlo
from altclip_jax.planning.exchange import device_groups, device_pairs, exchanges


@pytest.fixture(scope="module")
def mesh():
    return parallel.make_mesh(data=2, fsdp=2, tensor=2)


def program(function, *shapes, mesh=None, cut=None):
    """Compiles a function, with `mesh` as what each of its devices does with a piece that is cut along axes `cut`."""
    if mesh is not None:
        spec = PartitionSpec(cut)
        function = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return hlo.parse(jax.jit(function).lower(*arguments).compile().as_text())


# Of 24 float32 on each device, 96 bytes. What a ring of n sends: an all-gather n - 1 pieces, an all-reduce
# 2 (n - 1) / n of its array, the others (n - 1) / n of theirs.
ONE = {
    "psum": (lambda x: lax.psum(x, "fsdp"), "all-reduce", ("fsdp",), 96),
    "psum over two axes": (lambda x: lax.psum(x, ("data", "tensor")), "all-reduce", ("data", "tensor"), 144),
    "all_gather": (lambda x: lax.all_gather(x, "tensor", tiled=True), "all-gather", ("tensor",), 96),
    "psum_scatter": (lambda x: lax.psum_scatter(x, "data", tiled=True), "reduce-scatter", ("data",), 48),
    "all_to_all": (lambda x: lax.all_to_all(x, "fsdp", 0, 0, tiled=True), "all-to-all", ("fsdp",), 48),
    "ppermute": (lambda x: lax.ppermute(x, "data", [(0, 1), (1, 0)]), "collective-permute", ("data",), 96),
    "ppermute one way": (lambda x: lax.ppermute(x, "tensor", [(0, 1)]), "collective-permute", ("tensor",), 48),
}


@pytest.mark.parametrize("name", ONE)
def test_bytes_and_axes_of_one_exchange(mesh, name):
    function, kind, axes, sent = ONE[name]
    found = exchanges(program(function, (192,), mesh=mesh, cut=parallel.AXES), mesh.shape)
    assert found == [(kind, axes, 1, 96, sent)]


def test_rounds_of_loops_multiply(mesh):
    def inner(x, _):
        return lax.ppermute(x, "data", [(0, 1), (1, 0)]) + 1, None

    def outer(x, _):
        return lax.psum(lax.scan(inner, x, length=3)[0], "fsdp"), None

    def whole(x):
        return lax.scan(outer, x, length=5)[0]

    found = program(whole, (192,), mesh=mesh, cut=parallel.AXES)
    assert exchanges(found, mesh.shape) == [
        ("collective-permute", ("data",), 15, 15 * 96, 15 * 96),
        ("all-reduce", ("fsdp",), 5, 5 * 96, 5 * 96),
    ]
    assert found.unknown_loops() == 0


def test_a_loop_of_unknown_length_is_told(mesh):
    def whole(x):
        return lax.while_loop(lambda x: x[0] < 9, lambda x: lax.psum(x, "fsdp") + 1, x)

    found = program(whole, (192,), mesh=mesh, cut=parallel.AXES)
    assert exchanges(found, mesh.shape) == [("all-reduce", ("fsdp",), 1, 96, 96)]
    assert found.unknown_loops() == 1


def test_what_the_partitioner_inserts_is_found(mesh):
    rows, whole = parallel.sharding(mesh, parallel.BATCH), parallel.sharding(mesh)
    compiled = jax.jit(lambda x: x * 2, in_shardings=rows, out_shardings=whole)
    text = compiled.lower(jax.ShapeDtypeStruct((16, 3), jnp.float32)).compile().as_text()
    # each device has 4 rows of 12 bytes and gets those of three others
    assert exchanges(hlo.parse(text), mesh.shape) == [("all-gather", ("data", "fsdp"), 1, 48, 144)]


@pytest.mark.parametrize(
    "text",
    [
        "replica_groups={{0,2},{1,3},{4,6},{5,7}}, x",
        "replica_groups=[4,2]<=[2,2,2]T(0,2,1), x",
        "replica_groups=mesh['a'=2,'b'=2,'c'=2] {'b'}, x",
        "replica_groups=mesh['a'=8] {'a':(2)2}, x",
        "replica_groups=mesh['a'=2,'b'=4], device_ids=([2,2,2]T(1,0,2)) {'a'}, x",
        "replica_groups=mesh['a'=4,'b'=2], device_ids=(0,2,1,3,4,6,5,7) {'b'}, x",
    ],
)
def test_every_form_of_groups_is_read(text):
    assert sorted(sorted(group) for group in device_groups(text, 8).tolist()) == [[0, 2], [1, 3], [4, 6], [5, 7]]


def test_all_devices_and_unknown_forms():
    np.testing.assert_array_equal(device_groups("replica_groups={}, x", 3), [[0, 1, 2]])
    np.testing.assert_array_equal(device_pairs("source_target_pairs={{0,1},{1,2}}, x"), [[0, 1], [1, 2]])
    with pytest.raises(ValueError, match="not known here: replica_groups=<new>"):
        device_groups("replica_groups=<new>", 8)


def test_products_of_the_compiled_program_are_counted():
    def products(x, y):
        return lax.scan(lambda carry, _: (carry @ y, None), x, length=6)[0]

    assert program(products, (3, 5), (5, 5)).product_flops() == 6 * 2 * 3 * 5 * 5
    convolution = functools.partial(lax.conv_general_dilated, window_strides=(4, 4), padding="VALID")
    assert program(convolution, (2, 3, 8, 8), (6, 3, 4, 4)).product_flops() == 2 * (2 * 6 * 2 * 2) * (3 * 4 * 4)


def test_a_convolution_counts_no_padding_and_no_gaps():
    def dilated(x, kernel):
        return lax.conv_general_dilated(x, kernel, (1,), ((2, 2),), lhs_dilation=(2,))

    # an input of 4 with gaps between is 7 long; under a kernel of 3 each of the 4 numbers lies 3 times
    assert program(dilated, (1, 1, 4), (1, 1, 3)).product_flops() == 2 * 4 * 3


def test_text_that_is_no_program_is_refused():
    with pytest.raises(ValueError, match="does not end with its ENTRY"):
        hlo.parse("HloModule nothing")


# As TPU's compiler writes it: loops without their trip count, and an exchange in each fusion that starts or hides it.
TPU = """HloModule step, is_scheduled=true

%start (p: f32[2]) -> (f32[2], f32[16], u32[]) {
  %p = f32[2]{0:T(128)} parameter(0)
  %g.1 = f32[16]{0:T(128)} all-gather(%p), channel_id=2, replica_groups=mesh['a'=8] {'a'}, dimensions={0}
  ROOT %c = (f32[2]{0}, f32[16]{0:T(128)S(1)}, u32[]{:S(2)}) custom-call(%g.1)
}

%async_collective_fusion.1 (q: f32[2], r: f32[2]) -> (f32[2], f32[16]) {
  %q = f32[2]{0:T(128)} parameter(0)
  %r = f32[2]{0:T(128)} parameter(1)
  %m = f32[2]{0:T(128)} multiply(%r, %r)
  %g.2 = f32[16]{0:T(128)} all-gather(%q), channel_id=2, replica_groups=mesh['a'=8] {'a'}, dimensions={0}
  ROOT %t = (f32[2]{0:T(128)}, f32[16]{0:T(128)}) tuple(%m, %g.2)
}

%body (s: (s32[], f32[2])) -> (s32[], f32[2]) {
  %s = (s32[]{:T(128)}, f32[2]{0:T(128)}) parameter(0)
  %x = f32[2]{0:T(128)} get-tuple-element(%s), index=1
  %f.1 = (f32[2]{0}, f32[16]{0:T(128)S(1)}, u32[]{:S(2)}) fusion(%x), kind=kCustom, calls=%start
  %y = f32[2]{0:T(128)} get-tuple-element(%f.1), index=0
  %f.2 = (f32[2]{0:T(128)}, f32[16]{0:T(128)}) fusion(%y, %x), kind=kOutput, calls=%async_collective_fusion.1
  ROOT %n = (s32[]{:T(128)}, f32[2]{0:T(128)}) tuple(%s, %x)
}

%condition (s.1: (s32[], f32[2])) -> pred[] {
  %limit = s32[]{:T(128)} constant(4)
  %s.1 = (s32[]{:T(128)}, f32[2]{0:T(128)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%s.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %limit), direction=LT
}

ENTRY %main (a: (s32[], f32[2])) -> (s32[], f32[2]) {
  %a = (s32[]{:T(128)}, f32[2]{0:T(128)}) parameter(0)
  ROOT %w = (s32[]{:T(128)}, f32[2]{0:T(128)}) while(%a), condition=%condition, body=%body
}
"""


def test_a_tpu_program_counts_each_exchange_once_a_round(mesh):
    found = hlo.parse(TPU)
    assert exchanges(found, mesh.shape) == [("all-gather", parallel.AXES, 4, 4 * 8, 4 * 8 * 7)]
    assert found.unknown_loops() == 0
    assert hlo.parse(TPU.replace("direction=LT", "direction=GT")).unknown_loops() == 1
