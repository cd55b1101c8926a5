"""What a pickle would take, read off its instructions before anything is built of it.

Python's unpickler gives memory to what a stream only claims: a text of a terabyte, a memo of 2^31 places, a tuple of
tuples that takes longer to hash than anybody lives. Sizes and counts here are of instructions and of values.
"""

import pickletools
import struct

MOST_VALUES = 10_000_000  # in a pickle, values named twice counted twice
_PUTS = ("PUT", "BINPUT", "LONG_BINPUT")
_GETS = ("GET", "BINGET", "LONG_BINGET")
_GROW = ("APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD")
_MARK = None


def scan_pickle(file):
    """The globals, as "module name", that the pickle from where `file` stands asks for; `file` stands behind it then.

    file: with tell, and read and readline that give what is there, however much is asked for (BytesIO, mmap).

    Raises:
        ValueError: cut short, or it would not be one, or take memory out of all proportion.
    """
    stack, memo, names, framed = [], {}, set(), 0
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(file), start=1):
            if opcode.name in _PUTS and argument > count:
                raise ValueError(f"a memo of {argument} places after {count} instructions")
            if opcode.name == "FRAME":
                framed = max(framed, file.tell() + argument)
            if opcode.name == "GLOBAL":
                names.add(argument)
            elif opcode.name in ("STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"):
                names.add(f"by {opcode.name}")
            _step(opcode, argument, stack, memo)
    except (IndexError, KeyError, TypeError, struct.error, OverflowError) as error:
        raise ValueError(f"no pickle: {error}") from error
    if framed > file.tell():
        raise ValueError(f"a frame ends at byte {framed}, the pickle at {file.tell()}")
    return names


def _step(opcode, argument, stack, memo):
    """One instruction on a stack of [number of values], None for a mark."""
    name = opcode.name
    if name in _PUTS or name == "MEMOIZE":
        memo[len(memo) if name == "MEMOIZE" else argument] = stack[-1]
        return
    if name in _GETS:
        stack.append(memo[argument])
        return
    if name == "DUP":
        stack.append(stack[-1])
        return
    if name == "POP":
        stack.pop()
        return
    taken = [stack.pop() for _ in range(_taken(opcode, stack))]
    total = 1 + sum(item[0] for item in taken if item is not _MARK)
    if total > MOST_VALUES:
        raise ValueError(f"a pickle of more than {MOST_VALUES} values")
    if name in _GROW:
        taken[-1][0] = total  # the same object, also where the memo has it
        stack.append(taken[-1])
        return
    for kind in opcode.stack_after:
        stack.append(_MARK if kind is pickletools.markobject else [total])


def _taken(opcode, stack):
    """How many places of the stack an instruction takes."""
    before = opcode.stack_before
    if pickletools.markobject not in before:
        return len(before)
    inside = next((i for i, item in enumerate(reversed(stack)) if item is _MARK), len(stack))
    return inside + 1 + before.index(pickletools.markobject)
