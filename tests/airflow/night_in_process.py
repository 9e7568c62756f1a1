"""Run by a test: `dag.test()` for each pair of arguments (workspace, until); prints the states as JSON."""

import json
import sys

from airflow.dag_processing.dagbag import DagBag


def main(folder: str, workspace: str, *nights: str) -> None:
    """Run the nights that end at ``nights`` one after another in this process."""
    dag = DagBag(dag_folder=folder).dags["nightly_retrain"]
    runs = [dag.test(run_conf={"workspace": workspace, "until": until}) for until in nights]
    told = [
        {
            "state": str(run.state),
            "tasks": {task.task_id: str(task.state) for task in run.get_task_instances()},
        }
        for run in runs
    ]
    sys.stdout.write("RESULT" + json.dumps(told))


if __name__ == "__main__":
    main(*sys.argv[1:])
