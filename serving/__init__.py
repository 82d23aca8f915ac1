"""The map: every module that an image meets, in the order in which it meets them, and the few beside its way. A folder
is a wing: it has one responsibility, and tests/test_layout.py says which other wings it may import.
docs/words.md says what job, ticket, lease and the other words mean.

The web process (run_web_server.py)
    web/patch               makes waiting cheap, and gunicorn deaf, before anything else is imported
    web/heap                glibc's heap, set up for decoding
    web/server              processes, each an event loop: start, serve, stop
    web/gunicorn_worker     gunicorn's worker, and what it does otherwise here
    web/door                accepts connections, until it is closed
    web/arrival             heads and bodies arrive in time, or not at all
    web/predict             POST /predict: the front door
    web/open_inference      /v2: the front door of the Open Inference Protocol
    web/infer_request       its requests -> named tensors
    web/tensors             named tensors, and how an answer brings them
    web/model_tensors       tensors -> pictures; predictions -> the output tensor
    web/models              the models by which a web process answers, each with its queue
    web/access              who may ask; the headers that every answer carries
    web/request_ids         an id for each request
    web/request_notes       what is noted of each request: its route, its stages, why it was refused
    web/jobs                asynchronous jobs: POST /predict with Prefer, /jobs/<id>
    web/preferences         the header Prefer
    web/uploads             a request -> the bytes of its images
    web/classify            the one path: upload -> gates -> decode -> job -> ticket -> answer
    web/pictures            an upload -> pixels of the model's size -> text
    web/sharing             whether a request needs a job of its own, where answers are shared
    web/answers             a model server's answer -> a body, and headers
    web/connection          whether the client still waits
    web/places              how many requests a process has in hand
    images/decode           upload bytes -> RGB uint8 pixels
    images/metadata         leaves out what a picture does not need
    images/limits           what an image may cost, attack by attack
    images/kinds            what a file is that could not be read
    images/tiff             which TIFFs are read, and how
    images/avif             how large the frames of an AVIF are
    images/grey             grey of more than 8 bits -> 8 bits
    images/resize           the resizer that uses SIMD, else Pillow's
    jobs/web_side           submit a job, get a ticket, wait with it for the answer
    jobs/shards             several Redis: which of them gets a job; what becomes of those in one that went away
    jobs/shards_served      … what is served on them
    jobs/ticket             stands for one submitted job; all tickets of a process
    jobs/admission          whether one more job may wait
    jobs/sender             submits the jobs of all requests together; looks for lost answers
    jobs/listener           the messages that carry answers
    jobs/flights            answers that are stored, or computed once for many requests
    jobs/flight_ticket      the ticket of a request that may share its answer
    jobs/answer_cache       under which key an answer is stored, and in which form
    jobs/async_jobs         asynchronous jobs: submit, look, cancel
    jobs/all_jobs           … by its id alone, in whichever of several queues
    jobs/watch              tells requests that wait when such jobs are over
    jobs/live_counts        what happens in each second, counted by all processes together
    jobs/readiness          whether the queue is served at all
The queue
    jobs/job                what travels: jobs, how they end, their states
    jobs/model_queue        the queue as a model server meets it
    jobs/keys               every key in Redis, its type and its lifetime
    jobs/job_queue          the life of a job, the clock, one script a verb (jobs/lua)
    jobs/lane_state         what a submit tells of its lane
    jobs/served             what the model servers serve: published, and learned
    jobs/redis_client       commands to Redis; its errors -> ours
    jobs/redis_url          REDIS_URL -> a client
    jobs/reach_shards       which of several Redis answer as a process starts
    jobs/redis_info         whether that Redis can keep the promise
The model server (run_model_server.py)
    jobs/model_side         join the queue, unless others serve another model there
    jobs/membership         take jobs under a lease, answer them, return those of the dead
    jobs/hand               what a membership holds of one lane
    jobs/leases             which processes of this host hold one
    batching/fetcher        take jobs, decode them, put them into the inbox
    batching/lanes          whose turn it is: people's jobs, or asynchronous ones
    batching/inbox          the jobs that wait for the model, their images side by side
    batching/predictor      a batch through the model; halves find the guilty job
    model/classifier        pixels -> probabilities -> labels
    model/openvino_runtime  the model on OpenVINO
    model/keras_runtime     the model on Keras
    batching/handover       predicted batches on their way to the answerer
    batching/answerer       probabilities -> answers -> the queue
    batching/loop           the three at the same time
    batching/loops          … for each model of a process
    batching/batch          what they hand to each other: Item, Batch, Predicted
    batching/state          what they know of each other
    batching/batch_log      a line of the log for each batch
Where the model comes from
    model/spec              one model's settings
    model/choose            spec -> a runtime -> a classifier, warm and checked
    model/runtime           what a model server asks of a runtime; yours may be one
    model/golden            the pictures by which each compiled batch is checked
    model/compiled_batches  which compiled batches run a count of images soonest
    model/own_network       whether the settings of a network of one's own fit together
    model/content           what a file or a folder holds, as a digest
    model/keras_models      spec -> a Keras model: one graph from pixels to probabilities
    model/keras_files       a network of one's own, as it was saved
    model/keras_ends        what is put before and behind it
    model/keras_setup       Keras, imported as the service wants it
    model/openvino_store    converted models on disk
    model/labels            a label for each class
    model/gpus              which GPUs there are
    model/failures          whatever a library raises -> one sentence
    model/noise             what frameworks write while they load
    model/gpu_packages      what Keras needs to see a GPU
Beside the way
    errors                  what can go wrong
    web/problems            errors -> JSON
    web/request_log         a line of the log for each request
    web/refusal_log         which limits refuse requests -> the log, without flooding it
    web/pages               pages for machines
    web/models_page         /models, and how each is doing
    web/metrics_page        /metrics, also on a port of its own
    web/page_files          the files of the page for people and of the operator's (web/page)
    web/live_state          how the service is doing, for the page and for programs
    web/state_schema        what /state says of itself
    jobs/live_view          how the service is doing, in one look at Redis
    web/admin               /admin: the operator's page, what it shows, and what it does
    web/admin_desk          … to whom it opens, and of which model it tells
    web/admin_letters       … to dead letters
    web/admin_schema        what /admin says of itself
    images/thumbnail        a small picture of an image
    web/api_docs            the API's pages at /docs
    web/openapi             the service's description, merged from what each front door says of itself
    web/jobs_schema         what /jobs/<id> says of itself
    web/predict_schema      what POST /predict says of itself
    web/open_inference_schema  what /v2 says of itself
    jobs/control            an operator's verbs: pause, drain, resume, quiet, wake
    jobs/overview           what an operator sees of the queue
    jobs/operator           dead letters
    jobs/verdict            whether the queue is well
    jobs/peek               the jobs that wait longest, without their images
    telemetry/web_metrics   what the web processes count
    telemetry/queue_gauges  what is known of the queue at a moment
    telemetry/model_metrics  what a model server counts
    telemetry/buckets       the bounds of the histograms' buckets
    telemetry/build         which build of the service runs
    telemetry/traces        what is traced, for OpenTelemetry
    telemetry/otlp          how spans leave a process
    web/request_traces      the span of each request that brings images
    jobs/tracing            what the queue asks of those who trace its jobs
    telemetry/logs          one form for every line of the log
    telemetry/log_output    writes the lines, and waits for no reader
    telemetry/log_relay     a process: what C++ writes -> JSON
    local/supervisor        processes that are restarted
    local/load              the requests of stress_test.py, and how each ended
    local/load_images       what they carry
    local/load_report       their numbers, as a table and as a picture
    local/model_group       the model servers of one model
    local/lease_keeper      which model servers are ready, or hang
    local/service_redis     which Redis run_service.py uses
    local/redis_server      a Redis of run_service.py's own
    local/web_address       whether a server can listen there, where to open it, whether it answers
    local/running_service   where the service of this folder is, for the operator's tools
    local/command_line      what queue_admin.py may be told
    local/models            how it tells of several models
    local/status            … how the service is doing
    local/watch             … every second; waits until a drain is over
    local/servers           what queue_admin.py says of model servers, and does with them
    local/letters           what it says of dead letters, and does with them
    local/waiting_jobs      what it says of jobs that wait
    local/printing          how it writes: tables, moments, text of others
    local/packages          which Python has what the scripts need
    local/terminal          what run_service.py shows
"""
