"""Make the accounts of accounts.json what they should be; safe to repeat.

Runs before the server, on the database alone: so it needs neither a running server nor the
administrator's password of today. Reads each account's name and password from the folder of its Secret.
"""

# ruff: noqa: INP001, T201 - a script by itself, whose output is the pod's log.

import json
import os
from pathlib import Path

from mlflow.exceptions import MlflowException
from mlflow.server.auth.sqlalchemy_store import SqlAlchemyStore
from mlflow.utils.workspace_utils import DEFAULT_WORKSPACE_NAME

SETTINGS = Path(os.environ.get("SETTINGS", "/etc/mlflow"))
SECRETS = Path(os.environ.get("SECRETS", "/run/secrets/mlflow"))


def ensure_user(store, username, password, *, is_admin, keeps_password):
    """Make the user, or give it the Secret's password again."""
    if not store.has_user(username):
        store.create_user(username, password, is_admin=is_admin)
        print(f"{username}: made")
    elif not keeps_password and not store.authenticate_user(username, password):
        store.update_user(username, password=password)
        print(f"{username}: has the Secret's password again")
    return store.get_user(username)


def ensure_role(store, name, grants):
    """Make the role grant what is wanted, and nothing else."""
    try:
        role = store.get_role_by_name(DEFAULT_WORKSPACE_NAME, name)
    except MlflowException:
        role = store.create_role(name, DEFAULT_WORKSPACE_NAME, "Kept by the mlflow chart.")
    wanted = dict(grants)
    for grant in store.list_role_permissions(role.id):
        if grant.resource_pattern == "*" and wanted.get(grant.resource_type) == grant.permission:
            del wanted[grant.resource_type]
        else:
            store.remove_role_permission(grant.id)
    for resource, permission in wanted.items():
        store.add_role_permission(role.id, resource, "*", permission)
        print(f"role {name}: {permission} on every {resource}")
    return role


def ensure_account(store, account):
    """Make one account: its user, its role, and the one's being in the other."""
    folder = SECRETS / account["name"]
    username = (folder / "username").read_text().strip()
    password = (folder / "password").read_text().strip()
    is_admin = account["name"] == "admin"
    user = ensure_user(store, username, password, is_admin=is_admin, keeps_password=is_admin)
    if not account["grants"]:
        return
    role = ensure_role(store, f"chart-{account['name']}", account["grants"])
    if role.id not in {mine.id for mine in store.list_user_roles(user.id)}:
        store.assign_role_to_user(user.id, role.id)


def main():
    """Make every account of accounts.json."""
    store = SqlAlchemyStore()
    store.init_db(os.environ["MLFLOW_BACKEND_STORE_URI"])
    for account in json.loads((SETTINGS / "accounts.json").read_text()):
        ensure_account(store, account)
    print("the accounts are as they should be")


main()
