"""Threads of one compression: tasks made of tasks, items with a budget; memory that is used again."""
from __future__ import annotations

import threading
import time
from concurrent.futures import CancelledError

import numpy as np
import pytest
import torch

import nnc
from nnc import buffers
from nnc.buffers import LEAST, contiguous, empty, reused
from nnc.pool import Pool
from nnc.workers import FREE, Workers, open_workers


@pytest.fixture(params=[1, 2, 5])
def pool(request):
    with Pool(request.param) as pool:
        yield pool


def test_results_come_in_order(pool):
    assert list(pool.map(lambda a, b: a + b, range(40), range(40))) == [2 * n for n in range(40)]


def test_tasks_of_tasks_never_wait_for_a_thread(pool):
    def depth(left: int) -> int:
        return 1 + sum(pool.map(depth, [left - 1] * 3)) if left else 1

    assert list(pool.map(depth, [4, 3])) == [121, 40]


def test_what_a_task_raises_is_raised_where_it_is_awaited(pool):
    def inner(n: int) -> int:
        if n == 3:
            raise ValueError("three")
        return n

    def outer() -> list[int]:
        return list(pool.map(inner, range(6)))

    with pytest.raises(ValueError, match="three"):
        pool.submit(outer).result()
    assert pool.submit(inner, 5).result() == 5  # and the threads go on


def test_idle_threads_help():
    with Pool(2) as pool:
        meet = threading.Barrier(2, timeout=20)
        pool.submit(lambda: list(pool.map(lambda _: meet.wait(), range(2)))).result()  # both at once, or never


def test_nothing_is_taken_after_the_end():
    with Pool(1) as pool:
        pass
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(print)


def test_what_has_not_begun_can_be_cancelled():
    pool, begun, go_on, done = Pool(1), threading.Event(), threading.Event(), []

    def part(n: int) -> None:
        begun.set()
        go_on.wait(20)
        done.append(n)

    task = pool.submit(lambda: list(pool.map(part, range(5))))
    assert begun.wait(20)
    pool.shutdown(wait=False, cancel_futures=True)
    go_on.set()
    with pytest.raises(CancelledError):
        task.result(timeout=20)
    pool.shutdown()
    assert done == [0]


def test_an_interrupt_ends_soon():
    """The CTUs of a tensor that have not begun are left out."""
    done = []

    def work(item: int) -> None:
        list(workers.pool.map(lambda n: (time.sleep(0.02), done.append(n)), range(500)))

    def interrupt(item: int) -> None:
        raise KeyboardInterrupt

    begin = time.monotonic()
    with pytest.raises(KeyboardInterrupt), open_workers(2) as workers:
        workers.map(lambda item: item and work(item), [0, 1], [0, 1], interrupt)
    assert time.monotonic() - begin < 5 and len(done) < 400


@pytest.mark.parametrize("threads", [1, 2, 4])
def test_items_within_the_budget(threads):
    sizes = [FREE, 3 * FREE, FREE // 2, 1, 0, 2 * FREE, FREE, FREE, 1, 1]
    lock, held, most, ended = threading.Lock(), 0, 0, []

    def work(index: int) -> int:
        nonlocal held, most
        with lock:
            held += sizes[index]
            most = max(most, held)
        time.sleep(0.002)
        with lock:
            held -= sizes[index]
        return index * index

    here = threading.get_ident()

    def finished(index: int) -> None:
        assert threading.get_ident() == here
        ended.append(index)

    with open_workers(threads) as workers:
        assert workers.map(work, range(10), sizes, finished) == [n * n for n in range(10)]
        assert workers.map(work, [], []) == []
    assert sorted(ended) == list(range(10)) and most <= FREE + max(sizes) * 5 // 4


@pytest.mark.parametrize("threads", [1, 3])
def test_an_item_that_fails_ends_the_round(threads):
    begun = []

    def work(index: int) -> None:
        begun.append(index)
        if index == 7:
            raise KeyError("seven")
        time.sleep(0.001)

    with open_workers(threads) as workers:
        with pytest.raises(KeyError, match="seven"):
            workers.map(work, range(100), list(range(100, 0, -1)))
        assert len(begun) < 100
        assert workers.map(lambda n: n, [1, 2], [1, 1]) == [1, 2]


def test_what_the_report_raises_ends_the_round():
    def interrupt(index: int) -> None:
        raise KeyboardInterrupt

    begun = []
    with open_workers(2) as workers:
        with pytest.raises(KeyboardInterrupt):
            workers.map(lambda n: (begun.append(n), time.sleep(0.01)), range(100), [1] * 100, interrupt)
    assert len(begun) < 100


def test_large_tensors_are_work_for_several():
    assert Workers().within(10, 10) is None
    with open_workers(4) as workers:
        assert workers.within(10, 100) is workers.pool and workers.within(1, 100) is None


# ------------------------------------------------------------------------------------------------------------ memory


def test_memory_is_used_again_and_never_while_it_is_held():
    with reused():
        first = empty((LEAST, 2), np.float32)
        at, view = first.ctypes.data, first[3:5]
        first[:] = 7
        del first
        other = empty((LEAST, 2), np.float32)
        other[:] = 1
        assert other.ctypes.data != at and (view == 7).all()  # a view holds it
        del view
        again = empty(2 * LEAST, np.int32)
        assert again.ctypes.data == at
        tensor = torch.from_numpy(again)
        del again
        assert empty(2 * LEAST, np.int32).ctypes.data != at and tensor.data_ptr() == at  # so does a tensor


def test_arrays_are_those_of_numpy():
    with reused():
        for shape, dtype, order in (((3, LEAST), np.float32, "C"), ((LEAST, 5), np.float64, "F"), (LEAST, np.uint8, "C"), ((0, 4), np.int16, "C"), ((2, 2), np.int64, "F")):
            found, wanted = empty(shape, dtype, order), np.empty(shape, dtype, order)
            assert (found.shape, found.dtype, found.strides, found.flags.writeable) == (wanted.shape, wanted.dtype, wanted.strides, True)
        plane = np.arange(6 * LEAST, dtype=np.float32).reshape(6, -1)
        assert contiguous(plane) is plane and np.array_equal(contiguous(plane.T), plane.T) and contiguous(plane.T).flags.c_contiguous


def test_nothing_is_kept_outside():
    assert buffers._current is None
    with reused(), reused():
        held = empty(LEAST, np.uint8)
        keeper = buffers._current
    assert buffers._current is None and not keeper.kept and not keeper.back
    held[:] = 1
    del held
    assert not keeper.back
    assert empty(LEAST, np.uint8).base is None


def test_kept_memory_is_bounded():
    with reused():
        keeper = buffers._current
        for size in (40, 3, 20, 90, 5, 60, 33):
            arrays = [empty(size << 20, np.uint8) for _ in range(3)]
            del arrays
            keeper.take(LEAST)
            assert sum(memory.nbytes for memory in keeper.kept) + keeper.used <= keeper.most + buffers.SPARE


def test_too_large_an_array_leaves_the_counts_as_they_were():
    with reused():
        with pytest.raises(MemoryError):
            empty(1 << 58, np.uint8)
        assert buffers._current.used == 0


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_many_units_of_all_kinds_load_the_same(tmp_path, threads):
    draw = torch.Generator().manual_seed(threads)
    state = {f"layer.{n}.weight": torch.randn(40 + n, 64, generator=draw) for n in range(12)}
    state |= {"large.weight": torch.randn(900, 300, generator=draw), "number": torch.tensor(3), "exact": torch.arange(40000)}
    state["earlier"], state["later"] = torch.randn(128, 128, generator=draw), None
    state["later"] = state["earlier"] + 0.01 * torch.randn(128, 128, generator=draw)
    nnc.compress(state, tmp_path / "a.safetensors", bits=5, threads=threads)
    one, several = nnc.load(tmp_path / "a.safetensors", threads=1), nnc.load(tmp_path / "a.safetensors", threads=threads)
    assert list(one) == list(several) == list(state) and all(torch.equal(one[name], several[name]) for name in one)
    assert nnc.verify(tmp_path / "a.safetensors", threads=threads) == len(state)
