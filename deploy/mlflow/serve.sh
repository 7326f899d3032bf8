#!/bin/sh
# MLflow on a PostgreSQL database, with a login: for a machine of one's own, and in compose.yaml.
#
#     apt-get install postgresql && runuser -u postgres -- createuser mlflow --pwprompt
#     runuser -u postgres -- createdb --owner mlflow mlflow
#     pip install 'mlflow[auth]' psycopg2-binary boto3
#     MLFLOW_BACKEND_STORE_URI=postgresql+psycopg2://mlflow:PASSWORD@localhost/mlflow \
#     MLFLOW_ARTIFACTS_DESTINATION=s3://mlflow MLFLOW_AUTH_ADMIN_PASSWORD=... sh deploy/mlflow/serve.sh --host 0.0.0.0
#
# The artifacts may also lie in a folder (file:///srv/mlflow). An S3-compatible store is named by MLFLOW_S3_ENDPOINT_URL,
# AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, which only this server needs. Clients:
#     MLFLOW_TRACKING_USERNAME=admin MLFLOW_TRACKING_PASSWORD=... eagleray train tracking.uri=http://HOST:5000
# Under a name of its own (https://mlflow.lab.org) it answers if MLFLOW_SERVER_ALLOWED_HOSTS has that name.
set -eu
: "${MLFLOW_BACKEND_STORE_URI:?is not set: the database, postgresql+psycopg2://USER:PASSWORD@HOST/NAME}"
: "${MLFLOW_ARTIFACTS_DESTINATION:?is not set: s3://BUCKET or file:///FOLDER}"
: "${MLFLOW_AUTH_ADMIN_PASSWORD:?is not set: the password of the user admin}"
umask 077
settings=$(mktemp)
escaped=$(printf %s "$MLFLOW_BACKEND_STORE_URI" | sed 's/%/%%/g')  # an ini file reads % as a reference
cat > "$settings" <<END
[mlflow]
default_permission = EDIT
database_uri = $escaped
admin_username = admin
authorization_function = mlflow.server.auth:authenticate_request_basic_auth
END
if [ -z "${MLFLOW_FLASK_SERVER_SECRET_KEY:-}" ]; then
  MLFLOW_FLASK_SERVER_SECRET_KEY=$(python -c 'import secrets; print(secrets.token_hex())')
fi
export MLFLOW_FLASK_SERVER_SECRET_KEY MLFLOW_AUTH_CONFIG_PATH="$settings"
export MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true
exec python -m mlflow server --app-name basic-auth "$@"
