"""Arbitrary bytes and values for readers, which give a result or one line."""

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from datamodules.cache_files import DamagedCacheError
from lightning_app.errors import UserError

property_based = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def reads_or_one_line(read, *arguments):
    said = "nothing"
    try:
        read(*arguments)
    except (UserError, DamagedCacheError) as error:
        said = str(error)
    assert said.isprintable(), ascii(said)
