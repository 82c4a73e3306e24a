"""Programs of five instructions: how they are drawn, read and run, whatever they look like.

A program has registers for whole numbers and reads inputs. It fails where it uses a register that
holds nothing yet, or reads more inputs than there are; and it has to say something:

    SET a 7    GET b    ADD a b    SUB b a    SAY a

A `Language` says how instructions are written, `PYTHON` as Python has them. Python itself executes
none of it.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

SET, GET, ADD, SUB, SAY = "SET", "GET", "ADD", "SUB", "SAY"

# Why a program is rejected; the first that applies.
REASONS = (
    "not_a_program",  # something else than instructions, to the letter
    "unset",  # it uses a register that holds nothing yet
    "no_input",  # it reads more inputs than there are
    "silent",  # it says nothing
)


class Instruction(NamedTuple):
    """What is done, the register that it is done to, and a number or another register."""

    operation: str
    register: str
    operand: str = ""


Program = list[Instruction]


WORDS = {
    SET: "SET {register} {operand}",
    GET: "GET {register}",
    ADD: "ADD {register} {operand}",
    SUB: "SUB {register} {operand}",
    SAY: "SAY {register}",
}
STATEMENTS = {
    SET: "{register} = {operand}",
    GET: "{register} = int(input())",
    ADD: "{register} += {operand}",
    SUB: "{register} -= {operand}",
    SAY: "print({register})",
}


@dataclass(frozen=True)
class Language:
    """How programs are written: as words behind one another, if nothing else is said.

    Attributes:
      registers: their names.
      num_numbers: those that programs name run from 0 to this, exclusive.
      forms: operation -> how it is written with its register and its operand.
      separator: between two instructions.
      boundary: regular expression of the separator where it is one.
    """

    registers: tuple[str, ...]
    num_numbers: int
    forms: Mapping[str, str] = field(default_factory=lambda: WORDS)
    separator: str = " "
    boundary: str = r" (?=[A-Z])"  # only operations are in capitals

    @functools.cached_property
    def numbers(self) -> tuple[str, ...]:
        """Every number, as text."""
        return tuple(map(str, range(self.num_numbers)))

    @functools.cached_property
    def instructions(self) -> Mapping[str, Instruction]:
        """Every instruction that there is, by its text."""
        operands = {SET: self.numbers, ADD: self.registers, SUB: self.registers}
        every = [
            Instruction(operation, register, operand)
            for operation in self.forms
            for register in self.registers
            for operand in operands.get(operation, ("",))
        ]
        return {self.write([instruction]): instruction for instruction in every}

    def write(self, program: Sequence[Instruction]) -> str:
        """The text of a program."""
        return self.separator.join(
            self.forms[operation].format(register=register, operand=operand)
            for operation, register, operand in program
        )

    def read(self, text: str) -> Program | None:
        """The program of a text; None where it is none."""
        parts = re.split(self.boundary, text)
        known = all(part in self.instructions for part in parts)
        return [self.instructions[part] for part in parts] if known else None

    def draw(self, rng: np.random.Generator, num_instructions: int, num_inputs: int) -> Program:
        """A program that does not fail; it says a register at its end, and maybe before.

        Args:
          rng: what decides.
          num_instructions: 2 or more.
          num_inputs: how many it may read.
        """
        program: Program = []
        held: list[str] = []  # registers that hold something
        for left in range(num_instructions, 0, -1):
            read = sum(one.operation == GET for one in program)
            # More often than others, since numbers and new names leave most to the writer.
            possible = [SET, SET, SET] + [GET] * (read < num_inputs) + [ADD, SUB, SAY] * bool(held)
            operation = SAY if left == 1 else _one_of(rng, possible)
            register = _one_of(rng, self.registers if operation in (SET, GET) else held)
            operand = ""
            if operation == SET:
                operand = _one_of(rng, self.numbers)
            elif operation in (ADD, SUB):
                operand = _one_of(rng, held)
            program.append(Instruction(operation, register, operand))
            held += [register] * (register not in held)
        return program

    def run(self, program: Sequence[Instruction], inputs: Sequence[int]) -> list[int] | str:
        """What a program says; or the reason why it is rejected."""
        values: dict[str, int] = {}
        waiting, said = list(inputs), list[int]()
        for operation, register, operand in program:
            if operation == SET:
                values[register] = int(operand)
            elif operation == GET:
                if not waiting:
                    return "no_input"
                values[register] = waiting.pop(0)
            elif register not in values or (operand and operand not in values):
                return "unset"
            elif operation == SAY:
                said.append(values[register])
            else:
                values[register] += values[operand] if operation == ADD else -values[operand]
        return said or "silent"

    def permute(self, programs: Sequence[Program], seed: int) -> list[Program]:
        """Programs in which each register and each number stands for another, in all alike.

        They do the same with other names: a reader can learn from them all that there was, but in
        names that mean something else to whoever shared the writer's.
        """
        rng, stands_for = np.random.default_rng(seed), dict[str, str]()
        for names in (self.registers, self.numbers):
            stands_for |= dict(zip(names, map(str, rng.permutation(names)), strict=True))
        return [
            [
                Instruction(
                    one.operation, stands_for[one.register], stands_for.get(one.operand, "")
                )
                for one in program
            ]
            for program in programs
        ]


PYTHON = Language(
    registers=tuple("abcdefghijklmnop"),
    num_numbers=1000,
    forms=STATEMENTS,
    separator="\n",
    boundary="\n",
)


def _one_of(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(len(options)))]  # ten times as fast as `rng.choice`
