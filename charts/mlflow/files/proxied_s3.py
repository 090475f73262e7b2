"""S3 for the server alone, as a plugin of MLflow (entry point `mlflow.artifact_repository`).

MLflow's own S3ArtifactRepository lets the server tell clients to fetch from the bucket by presigned
URLs, whenever it is S3; nothing switches that off, and a client that cannot reach the bucket hangs. This
one does the same without the presigned URLs: then clients fetch through the server.
"""

# ruff: noqa: INP001 - mounted on the path as a module of its own.

from mlflow.store.artifact.artifact_repo import ArtifactRepository
from mlflow.store.artifact.s3_artifact_repo import S3ArtifactRepository


class ProxiedS3(ArtifactRepository):
    """Does what S3ArtifactRepository does, and offers clients nothing of it."""

    def __init__(self, artifact_uri, tracking_uri=None, registry_uri=None):
        super().__init__(artifact_uri, tracking_uri, registry_uri)
        self._s3 = S3ArtifactRepository(
            artifact_uri, tracking_uri=tracking_uri, registry_uri=registry_uri
        )

    def log_artifact(self, local_file, artifact_path=None):
        """Put one file."""
        self._s3.log_artifact(local_file, artifact_path)

    def log_artifacts(self, local_dir, artifact_path=None):
        """Put a folder's files."""
        self._s3.log_artifacts(local_dir, artifact_path)

    def list_artifacts(self, path=None):
        """List one level."""
        return self._s3.list_artifacts(path)

    def delete_artifacts(self, artifact_path=None):
        """Delete all below a path."""
        self._s3.delete_artifacts(artifact_path)

    def _download_file(self, remote_file_path, local_path):
        self._s3._download_file(remote_file_path, local_path)  # noqa: SLF001 - MLflow's own hook.
