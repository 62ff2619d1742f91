"""The suite, run by trial: ``make test``.

Property tests run without hypothesis's deadlines and its check for slow input: how fast a machine is must not decide whether a
test passes.
"""

from hypothesis import HealthCheck, settings

settings.register_profile("suite", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("suite")
