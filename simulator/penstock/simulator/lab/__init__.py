"""The policy lab: a policy file against the policies that ship, over scenarios and seeds, as a leaderboard."""

from penstock.simulator.lab.board import Board, Row, make_boards
from penstock.simulator.lab.contest import Contest, Entry, Kind, Run, enter, play
from penstock.simulator.lab.public import public_scenarios

__all__ = ["Board", "Contest", "Entry", "Kind", "Row", "Run", "enter", "make_boards", "play", "public_scenarios"]
