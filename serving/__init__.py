"""The map: every module that an image meets, in the order in which it meets them. Wings are folders; a stranger who
looks for something opens one.

The web process (run_web_server.py)
    web/server              processes and threads: start, serve, drain
    web/gunicorn_worker     how a web process reads requests and writes answers
    web/access              the headers that every answer carries
    web/uploads             multipart form -> the bytes of one of its files
    jobs/web_side           submit a job, wait for its answer
    jobs/pending            one request that waits
    jobs/combining          few threads decode and submit for many requests
    jobs/admission          whether one more job may wait
    images/decode           upload bytes -> RGB uint8 pixels
    images/resize           the resizer that uses SIMD, else Pillow's
The queue
    jobs/job_queue          every key, the life of a job, the clock, one script a verb (jobs/lua)
    jobs/redis_url          REDIS_URL -> a client; its errors -> ours
    jobs/redis_wire         commands out, replies in
The model server (run_model_server.py)
    jobs/model_side         take jobs under a lease, answer them, return those of the dead
    batching/loop           three threads: fetch, predict, answer
    batching/batch          decoded images, side by side
    batching/predictor      a batch through the model; what fails is halved
    model/classifier        pixels -> labels
    model/openvino_runtime  the model on OpenVINO
    model/keras_runtime     the model on Keras
Beside the way
    errors                  what can go wrong
    web/pages               pages for people and machines; errors -> JSON
    web/openapi             the service's description
    jobs/operator           dead letters
    model/gpus              which GPUs there are
    telemetry/metrics       what is counted
    local/supervisor        processes that are restarted
    local/redis_server      a Redis of run_service.py's own
"""
