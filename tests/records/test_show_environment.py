"""What `longspan-env` prints names versions, hardware and backends, and no person, host or folder."""

import getpass
import os
import socket

from longspan.records.show_environment import environment_text


def test_the_environment_is_told_without_names_of_people_or_machines():
    told = dict(line.split(": ", 1) for line in environment_text().splitlines() if ": " in line)
    assert {"python", "torch", "triton", "longspan", "cpu", "backend triton", "backend flash"} <= told.keys()
    text = environment_text()
    assert os.getcwd() not in text and socket.gethostname() not in text.split()
    assert getpass.getuser() == "root" or getpass.getuser() not in text
