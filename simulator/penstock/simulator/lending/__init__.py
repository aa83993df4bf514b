"""Workers of one model that lend KV memory to one another, or move requests: two twins beside the plain one.

What lends is outside the engines. Each has more blocks than its memory, of which a ledger keeps all but its own out of
use; to lend is to take blocks from one pool and to let as many go in another, so engines know nothing of it. Passes are
lengthened, or shortened, by whoever drives them.
"""

from penstock.simulator.lending.ledger import Ledger
from penstock.simulator.lending.moving import MovingRules, MovingTwin
from penstock.simulator.lending.rules import LendingRules
from penstock.simulator.lending.twin import LendingTwin

__all__ = ["Ledger", "LendingRules", "LendingTwin", "MovingRules", "MovingTwin"]
