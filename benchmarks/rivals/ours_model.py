"""This service's model server, with the shared model in the place of its own."""

import sys

import shared

import run_model_server


def load_classifier(config):  # noqa: ARG001
    classifier = shared.load()

    def predict(pixels):
        probabilities = classifier.probabilities(pixels)
        return lambda: [run_model_server.as_answer(classifier.likeliest(row), is_random=False) for row in probabilities]

    return predict


run_model_server.load_classifier = load_classifier
sys.exit(run_model_server.main())
