"""Runs migrations over the connection it is given; the caller holds the transaction."""

from alembic import context

from fairlead_experiments.adapters.schema import METADATA

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=METADATA,
    compare_type=True,
    render_as_batch=True,
)
context.run_migrations()
