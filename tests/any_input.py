"""Arbitrary bytes and values for readers, which give a result or one line."""

import os

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from datamodules.cache_files import DamagedCacheError
from lightning_app.errors import UserError

EXAMPLES = "NEUROGLOT_EXAMPLES"
_is_search = EXAMPLES in os.environ
# The same few examples each time; a search draws others. Without `explain`, which follows every line of every library.
property_based = settings(
    max_examples=int(os.environ.get(EXAMPLES, "15")),
    derandomize=not _is_search,
    database=None,
    deadline=None,
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
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
