"""Make the bucket of MLFLOW_ARTIFACTS_DESTINATION, write all it holds as a tar file, or read it back.

python bucket.py ensure
python bucket.py dump > artifacts.tar
python bucket.py restore < artifacts.tar
"""

# ruff: noqa: INP001, T201 - a script by itself, whose output is the pod's log.

import os
import sys
import tarfile
import time
from urllib.parse import urlsplit

import boto3
from botocore.exceptions import BotoCoreError, ClientError

DESTINATION = urlsplit(os.environ["MLFLOW_ARTIFACTS_DESTINATION"])
BUCKET = DESTINATION.netloc
PREFIX = f"{DESTINATION.path.strip('/')}/".lstrip("/")


def ensure(client):
    """Make the bucket; wait for the S3 server as long as it takes."""
    said = ""
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
        except (client.exceptions.BucketAlreadyOwnedByYou, client.exceptions.BucketAlreadyExists):
            break
        except (BotoCoreError, ClientError) as error:
            if str(error) != said:
                said = str(error)
                print(f"waiting for S3: {said}", flush=True)
            time.sleep(2)
        else:
            break
    print(f"the bucket {BUCKET} is there")


def dump(client):
    """Write every object to standard output, as a tar file."""
    count = 0
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=PREFIX)
    with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as archive:
        for item in (item for page in pages for item in page.get("Contents", ())):
            found = client.get_object(Bucket=BUCKET, Key=item["Key"])
            info = tarfile.TarInfo(item["Key"].removeprefix(PREFIX))
            info.size = found["ContentLength"]
            info.mtime = int(found["LastModified"].timestamp())
            archive.addfile(info, found["Body"])
            count += 1
    print(f"{count} objects written", file=sys.stderr)


class Stream:
    """What boto3 may do with a file that comes once: read it. A tar stream's own file fails when asked to seek."""

    def __init__(self, file):
        self.read = file.read


def restore(client):
    """Put every file of the tar file on standard input into the bucket."""
    count = 0
    with tarfile.open(fileobj=sys.stdin.buffer, mode="r|") as archive:
        for member in archive:
            if member.isfile():
                file = Stream(archive.extractfile(member))
                client.upload_fileobj(file, BUCKET, PREFIX + member.name)
                count += 1
    print(f"{count} objects restored", file=sys.stderr)


def main():
    """Do what the verb says."""
    client = boto3.client("s3", endpoint_url=os.environ.get("MLFLOW_S3_ENDPOINT_URL"))
    {"ensure": ensure, "dump": dump, "restore": restore}[sys.argv[1]](client)


main()
