"""What a machine that runs the ServerApp needs."""

from __future__ import annotations

import time
from functools import partial

from fednano_flwr.doctor import certificates, folders, listening, machine, model, settings, versions
from fednano_flwr.doctor.finding import Finding
from fednano_flwr.doctor.subject import Subject, Themes, dialled, threads


def checks(subject: Subject) -> Themes:
    """All checks; without a run config, those that need none."""
    config = subject.config
    clock = ("the clock", lambda: certificates.check_clock(time.time()))
    if config is None:
        return {"certificates": [clock], "network": dialled(subject, "exchange.ca-cert", "")}
    llm, its, bundle = config.llm, config.model, config.edge.bundle

    def run_dir() -> list[Finding]:
        return folders.check_run_dir(config, model.parts_of(its.name, its.revision))

    def memory() -> list[Finding]:
        parts = model.parts_of(its.name, its.revision)
        return [] if parts is None else machine.check_server_memory(config, parts)

    themes: Themes = {
        "run config": [
            ("strategy and ranks", partial(settings.check_names, config)),
            ("the host's options", partial(settings.check_host_options, config)),
            ("resume", partial(settings.check_resume, config)),
        ],
        "model": [
            ("the model", partial(model.check_half, its.name, "llm", its.revision)),
            ("the processor", partial(model.check_processor, its.name, its.revision)),
        ],
        "folders": [("run.dir", run_dir), ("temporary files", folders.check_temporary)],
        "certificates": [
            ("the service's certificate", partial(certificates.check_service, config)),
            clock,
        ],
        "network": [
            ("llm.bind and llm.port", partial(listening.check_listening, llm)),
            ("llm.address", partial(listening.check_reach, llm)),
            ("llm.metrics", partial(listening.check_metrics, llm)),
            *dialled(subject, "exchange.ca-cert", config.exchange.ca_cert),
        ],
        "machine": [
            ("llm.device", partial(versions.check_device, "llm.device", llm.device)),
            threads("llm.threads", llm.threads),
            ("memory", memory),
            (
                "open files",
                lambda: machine.check_open_files(llm.max_clients, machine.open_files()),
            ),
        ],
    }
    if bundle:
        check = partial(model.check_edge_path, "edge.bundle", bundle, its)
        themes["model"].append(("the edge bundle", check))
    return themes
