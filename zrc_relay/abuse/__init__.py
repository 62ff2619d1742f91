"""External systems that hear of abuse and say whom to block (R6.6): a webhook, and a CrowdSec-style engine.

Both run beside the relay and never in the way of a packet: they are asked by background loops, what waits for them is bounded,
and when they are slow, wrong or gone nothing changes but the numbers that say so. What they decide goes through ``blocking``,
which knows what is too much to believe.
"""
