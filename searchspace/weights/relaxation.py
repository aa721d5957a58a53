"""Relaxations of a stage: weights that are equivariant in part.

A relaxation is a parametrisation of the convolutions' weights; the convolutions, the fields and the
head stay those of the stage's group G. E_H(theta) is a weight equivariant under H by construction.

    +H     residual pathway    E_G(theta) + gamma E_H(phi), gamma one number per convolution
    |H|K   mixed layer         sum of softmax(alpha)_H n_H E_H(theta_H / ||theta_H||) over the
                               chain G > H > K, n_H the norm of theta_H at the start
    bN     banks               sum over N banks of w_b(h) psi_b(g^-1 h): each of E_G(psi_b), with
                               a weight for every element h, constant at the start
    ~S     softness            P_G W + S (W - P_G W) of a free weight W, P_G the average over G

    >>> Relaxation.parse("+C1").certain(Group.parse("C4")), str(Relaxation.parse("~0.30"))
    (Group(rotations=1, mirror=False), '~0.3')

`papers`: RPP (Finzi et al. 2021) and ACE (arXiv:2505.13631); EquiNAS (arXiv:2210.05484); Wang et
al. 2022 (arXiv:2201.11969); projection of weights (arXiv:2601.05028).
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, get_args

from searchspace.groups import TRIVIAL, Group

RelaxationKind = Literal["pathway", "mixed", "banks", "softness"]
RELAXATION_KINDS = get_args(RelaxationKind)
MOST_BANKS = 64
GAMMA_AT_START = 1.0
NUMBER = r"\d+(?:\.\d+)?(?:e-?\d+)?"
# what may stand behind a stage's group
PATTERN = rf"\+[A-Za-z]_?\d+|(?:\|[A-Za-z]_?\d+)+|b-?\d+|~-?{NUMBER}"


@dataclass(frozen=True)
class Relaxation:
    """What is relaxed in a stage's weights; `check` says whether it suits the stage's group."""

    kind: RelaxationKind
    chain: tuple[
        Group, ...
    ] = ()  # of a pathway its group; of a mixed layer those below the stage's
    banks: int = 1
    softness: float = 0.0  # 0: the constraint, 1: no constraint

    def __post_init__(self) -> None:
        if self.kind not in RELAXATION_KINDS:
            raise ValueError(
                f"the relaxation is '{self.kind}'; choose one of {', '.join(RELAXATION_KINDS)}"
            )
        if not 1 <= self.banks <= MOST_BANKS:
            raise ValueError(
                f"a relaxed convolution has {self.banks} banks; it must have 1 to {MOST_BANKS}, "
                "such as @C4b2 (1: the constraint)"
            )
        if not (math.isfinite(self.softness) and 0 <= self.softness <= 1):
            raise ValueError(
                f"softness is {self.softness:g}; it must be from 0 (the constraint) to 1 (no "
                "constraint), such as @C4~0.3"
            )

    @classmethod
    def parse(cls, text: str) -> Relaxation:
        """The relaxation of a text such as `+C1`, `|C4|C1`, `b2` or `~0.3`. Raises ValueError."""
        if not re.fullmatch(PATTERN, text):
            raise ValueError(
                f"'{text}' is not a relaxation; write +C1 (a pathway), |C4|C1 (a mixed layer), b2 "
                "(banks) or ~0.3 (softness)"
            )
        rest = text[1:]
        if text.startswith("+"):
            return cls("pathway", (Group.parse(rest),))
        if text.startswith("|"):
            return cls("mixed", tuple(map(Group.parse, rest.split("|"))))
        if text.startswith("b"):
            return cls("banks", banks=int(rest))
        return cls("softness", softness=float(rest))

    def __str__(self) -> str:
        if self.kind == "pathway":
            return f"+{self.chain[0]}"
        if self.kind == "mixed":
            return "".join(f"|{group}" for group in self.chain)
        return (
            f"b{self.banks}"
            if self.kind == "banks"
            else "~" + repr(float(self.softness)).removesuffix(".0")
        )

    @property
    def is_constraint(self) -> bool:
        """True if nothing is relaxed: one bank, whose weights are then constant, or softness 0."""
        return (self.kind == "banks" and self.banks == 1) or (
            self.kind == "softness" and self.softness == 0
        )

    def check(self, group: Group) -> None:
        """Raises ValueError where a stage of `group` cannot be relaxed so."""
        if self.is_constraint:
            return
        if group == TRIVIAL:
            raise ValueError(
                f"{group}{self} relaxes a stage of {group}, which has no constraint; give the "
                f"stage a group, such as @C4{self if self.kind != 'mixed' else '|C1'}"
            )
        if not group.on_grid:
            raise ValueError(
                f"{group}{self} relaxes a stage of {group}, whose filters are a basis; a relaxed "
                "stage needs free filters: choose one of C2, C4, D1, D2, D4"
            )
        for larger, smaller in pairwise((group, *self.chain)):
            if not smaller < larger:
                proper = ", ".join(map(str, larger.subgroups()[:-1])) or "none"
                what = "a pathway to" if self.kind == "pathway" else "a mixed layer with"
                raise ValueError(
                    f"{group}{self} is {what} {smaller}, which is not a proper subgroup of "
                    f"{larger}; choose one of its proper subgroups: {proper}"
                )

    def suits(self, group: Group) -> bool:
        """True if a stage of `group` can be relaxed so, and is."""
        try:
            self.check(group)
        except ValueError:
            return False
        return not self.is_constraint

    def certain(self, group: Group) -> Group:
        """The largest group under which a stage of `group` is exact whatever its parameters are."""
        if self.is_constraint:
            return group
        return self.chain[-1] if self.chain else TRIVIAL

    def decided_by(self, group: Group) -> str:
        """What decides how near a stage of `group` is to the exact one, in words."""
        if self.kind == "pathway":
            return f"how small gamma of the pathway to {self.chain[0]} is"
        if self.kind == "mixed":
            smaller = " and ".join(map(str, self.chain))
            return f"how much weight alpha leaves to {smaller} beside {group}"
        if self.kind == "banks":
            return f"how much the weights w of its {self.banks} banks vary over {group}"
        return f"softness {self.softness:g} of what training puts outside {group}"

    def start_distance(self, group: Group, gamma: float = GAMMA_AT_START) -> float:
        """||W - P_G W|| / ||W|| that is expected of a new stage of `group`: 0 is exact.

        A weight that is equivariant under H alone has |H| / |G| of its squared norm in P_G W.
        """
        if self.is_constraint or self.kind == "banks":
            return 0.0
        if self.kind == "softness":
            inside, outside = 1 / group.order, 1 - 1 / group.order
            return math.sqrt(self.softness**2 * outside / (inside + self.softness**2 * outside))
        parts = [1.0, gamma**2] if self.kind == "pathway" else [1.0] * (1 + len(self.chain))
        orders = [group.order, *(smaller.order for smaller in self.chain)]
        outside = sum(p * (1 - order / group.order) for p, order in zip(parts, orders))
        return math.sqrt(outside / sum(parts))

    def parameters(self, group: Group, weights: int) -> int:
        """The trained values of a convolution of a stage of `group` whose weight has `weights`
        entries, without its norm.
        """
        if self.is_constraint:
            return weights // group.order
        if self.kind == "softness":
            return weights
        if self.kind == "banks":
            return self.banks * (weights // group.order + group.order)
        filters = sum(weights // each.order for each in (group, *self.chain))
        return filters + (1 if self.kind == "pathway" else 1 + len(self.chain))
