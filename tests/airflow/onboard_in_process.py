"""Run by a test: `dag.test()` of a new surface, answered by a person who is a thread; prints what came of it.

The thread does what Airflow's API server does with an answer: no server is running here.
"""

import json
import sys
import threading
import time
from pathlib import Path

from airflow.dag_processing.dagbag import DagBag
from airflow.models import import_all_models
from airflow.models.hitl import HITLDetail, HITLUser
from airflow.models.taskinstance import TaskInstance
from airflow.models.trigger import handle_event_submit
from airflow.sdk import timezone
from airflow.triggers.base import TriggerEvent
from airflow.utils.session import create_session
from sqlalchemy import select
from sqlalchemy.orm import configure_mappers


def answer(chosen: str, asked: list[dict[str, str]]) -> None:
    """Wait for the next question, and choose."""
    while True:
        time.sleep(0.2)
        with create_session() as session:
            question = session.scalars(select(HITLDetail).where(HITLDetail.responded_at.is_(None))).first()
            if question is None:
                continue
            task = session.get(TaskInstance, question.ti_id)
            if task.state != "awaiting_input":
                continue
            asked.append({"subject": question.subject, "body": question.body})
            question.responded_by = HITLUser(id="1", name="ann")
            question.responded_at = timezone.utcnow()
            question.chosen_options = [chosen]
            event = TriggerEvent(question.as_resume_event_payload())
            handle_event_submit(event, task_instance=task, session=session)
            return


def main(folder: str, conf: str, *choices: str) -> None:
    """Run the DAG once for each choice of the person."""
    import_all_models()  # now: two threads that import them at once wait for each other
    configure_mappers()
    dag = DagBag(dag_folder=folder).dags["onboard_surface"]
    told = []
    for chosen in choices:
        asked: list[dict[str, str]] = []
        threading.Thread(target=answer, args=(chosen, asked), daemon=True).start()
        run = dag.test(run_conf=json.loads(conf))
        states = {task.task_id: str(task.state) for task in run.get_task_instances()}
        pointer = json.loads((Path(json.loads(conf)["workspace"]) / "bundles" / "champion.json").read_text())
        told.append({"tasks": states, "asked": asked, "champion": pointer["champion"]})
    sys.stdout.write("RESULT" + json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
