{{- /*
What this chart's templates share.

"mlflow.account" (dict "context" . "name" "reader")     the name of an account's Secret
"mlflow.databaseUrl" .        PostgreSQL's URL, without a password: that comes as PGPASSWORD
"mlflow.s3Secret" .           the Secret that opens the bucket, or nothing
"mlflow.databaseEnv" .        the environment by which a container reaches PostgreSQL
"mlflow.s3Env" .              the environment by which a container reaches the bucket
"mlflow.commonEnv" .          the environment of every container
"mlflow.hosts" .              the names that the server answers to
"mlflow.origins" .            the origins whose pages may call the API
"mlflow.check" .              fails where values do not go together
"mlflow.url" .                the server's URL in the cluster
*/ -}}

{{- define "mlflow.account" -}}
{{- $account := get .context.Values.auth.accounts .name -}}
{{- $account.existingSecret | default (printf "%s-%s" (include "mlflow.fullname" .context) .name) -}}
{{- end -}}

{{- define "mlflow.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "mlflow.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{- define "mlflow.url" -}}
http://{{ include "mlflow.fullname" . }}.{{ .Release.Namespace }}.svc:5000
{{- end -}}

{{- define "mlflow.databaseUrl" -}}
{{- if .Values.postgresql.enabled -}}
postgresql+psycopg2://mlflow@{{ include "mlflow.postgresql.host" . }}:5432/mlflow
{{- else -}}
{{- .Values.database.url -}}
{{- end -}}
{{- end -}}

{{- define "mlflow.databaseSecret" -}}
{{- if .Values.postgresql.enabled -}}
{{- include "mlflow.postgresql.secret" . -}}
{{- else -}}
{{- .Values.database.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "mlflow.s3Name" -}}
{{ include "mlflow.fullname" . }}-s3
{{- end -}}

{{- define "mlflow.s3Secret" -}}
{{- if .Values.s3.enabled -}}
{{- .Values.s3.existingSecret | default (include "mlflow.s3Name" .) -}}
{{- else -}}
{{- .Values.artifacts.existingSecret -}}
{{- end -}}
{{- end -}}

{{- define "mlflow.databaseEnv" -}}
- name: MLFLOW_BACKEND_STORE_URI
  value: {{ include "mlflow.databaseUrl" . | quote }}
{{- with include "mlflow.databaseSecret" . }}
- name: PGPASSWORD
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: password
{{- end }}
{{- end -}}

{{- define "mlflow.s3Env" -}}
- name: MLFLOW_ARTIFACTS_DESTINATION
  value: {{ ternary (printf "s3://%s" .Values.s3.bucket) .Values.artifacts.destination .Values.s3.enabled | quote }}
{{- $endpoint := ternary (printf "http://%s:7070" (include "mlflow.s3Name" .)) .Values.artifacts.endpoint .Values.s3.enabled }}
{{- with $endpoint }}
- name: MLFLOW_S3_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with ternary "us-east-1" .Values.artifacts.region .Values.s3.enabled }}
- name: AWS_DEFAULT_REGION
  value: {{ . | quote }}
{{- end }}
# Five attempts would keep a caller waiting for the whole outage; serving pods ask again themselves.
- name: AWS_MAX_ATTEMPTS
  value: "2"
{{- with include "mlflow.s3Secret" . }}
- name: AWS_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: accessKeyId
- name: AWS_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef:
      name: {{ . }}
      key: secretAccessKey
{{- end }}
{{- end -}}

{{- define "mlflow.commonEnv" -}}
- name: MLFLOW_DISABLE_TELEMETRY
  value: "true"
# What other projects deprecate among themselves is no news for the log's reader.
- name: PYTHONWARNINGS
  value: ignore
- name: HOME
  value: /tmp
# There is no git in the image; MLflow asks for it and says so at length.
- name: GIT_PYTHON_REFRESH
  value: quiet
{{- end -}}

{{- define "mlflow.hosts" -}}
{{- $name := include "mlflow.fullname" . -}}
{{- $own := list $name (printf "%s.%s" $name .Release.Namespace) (printf "%s.%s.svc" $name .Release.Namespace) (printf "%s.%s.svc.%s" $name .Release.Namespace .Values.clusterDomain) "localhost" "127.0.0.1" -}}
{{- if .Values.ingress.enabled }}{{ $own = append $own .Values.ingress.host }}{{ end -}}
{{- if .Values.httpRoute.enabled }}{{ $own = concat $own .Values.httpRoute.hostnames }}{{ end -}}
{{- $hosts := list -}}
{{- range $own }}{{ $hosts = append (append $hosts .) (printf "%s:*" .) }}{{ end -}}
{{- /* Pods are probed and read by their addresses; these are MLflow's own defaults. */ -}}
{{- $hosts = concat $hosts (list "10.*" "192.168.*") -}}
{{- range untilStep 16 32 1 }}{{ $hosts = append $hosts (printf "172.%d.*" .) }}{{ end -}}
{{- concat $hosts (list "[[]f[cd]*") .Values.server.allowedHosts | join "," -}}
{{- end -}}

{{- define "mlflow.origins" -}}
{{- $origins := .Values.server.corsAllowedOrigins -}}
{{- $hosts := list -}}
{{- if .Values.ingress.enabled }}{{ $hosts = append $hosts .Values.ingress.host }}{{ end -}}
{{- if .Values.httpRoute.enabled }}{{ $hosts = concat $hosts .Values.httpRoute.hostnames }}{{ end -}}
{{- range $hosts }}{{ $origins = concat $origins (list (printf "https://%s" .) (printf "http://%s" .)) }}{{ end -}}
{{- $origins | uniq | join "," -}}
{{- end -}}

{{- /* The port of a URL, or the one given. */ -}}
{{- define "mlflow.port" -}}
{{- $host := (urlParse .url).host -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $host) | default (.default | toString) -}}
{{- end -}}

{{- /* What does not go together is said with the keys' names. */ -}}
{{- define "mlflow.check" -}}
{{- $values := .Values -}}
{{- if and $values.postgresql.enabled $values.database.url -}}
{{- fail "database.url: set postgresql.enabled=false to use a PostgreSQL of your own" -}}
{{- end -}}
{{- if not (or $values.postgresql.enabled $values.database.url) -}}
{{- fail "database.url: with postgresql.enabled=false the URL of a PostgreSQL of your own is needed" -}}
{{- end -}}
{{- if and $values.s3.enabled $values.artifacts.destination -}}
{{- fail "artifacts.destination: set s3.enabled=false to use a bucket of your own" -}}
{{- end -}}
{{- if not (or $values.s3.enabled $values.artifacts.destination) -}}
{{- fail "artifacts.destination: with s3.enabled=false a bucket of your own is needed, such as s3://my-bucket/mlflow" -}}
{{- end -}}
{{- if and $values.ingress.enabled (not $values.ingress.host) -}}
{{- fail "ingress.host: a host's name is needed; MLflow answers only to names it knows" -}}
{{- end -}}
{{- if and $values.httpRoute.enabled (not (and $values.httpRoute.parentRefs $values.httpRoute.hostnames)) -}}
{{- fail "httpRoute.parentRefs, httpRoute.hostnames: a Gateway and a host's name are needed" -}}
{{- end -}}
{{- if and $values.metrics.serviceMonitor.enabled (not $values.metrics.enabled) -}}
{{- fail "metrics.serviceMonitor.enabled: set metrics.enabled=true as well" -}}
{{- end -}}
{{- if (gt (int $values.server.autoscaling.minReplicas) (int $values.server.autoscaling.maxReplicas)) -}}
{{- fail "server.autoscaling.minReplicas: it is above server.autoscaling.maxReplicas" -}}
{{- end -}}
{{- end -}}

{{- /* The edges out of the release, one egress rule each. */ -}}
{{- define "mlflow.databaseEgress" -}}
{{- if .Values.postgresql.enabled -}}
- to:
    {{- include "mlflow.peer" (dict "context" . "component" "postgresql") | nindent 4 }}
  ports:
    - port: 5432
{{- else -}}
- ports:
    - port: {{ include "mlflow.port" (dict "url" .Values.database.url "default" 5432) }}
  {{- with .Values.networkPolicy.database }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{- define "mlflow.s3Egress" -}}
{{- if .Values.s3.enabled -}}
- to:
    {{- include "mlflow.peer" (dict "context" . "component" "s3") | nindent 4 }}
  ports:
    - port: 7070
{{- else -}}
{{- $endpoint := .Values.artifacts.endpoint | default "https://s3.amazonaws.com" -}}
- ports:
    - port: {{ include "mlflow.port" (dict "url" $endpoint "default" (ternary 80 443 (hasPrefix "http:" $endpoint))) }}
  {{- with .Values.networkPolicy.artifacts }}
  to:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
{{- end -}}

{{- define "mlflow.serverEgress" -}}
- to:
    {{- include "mlflow.peer" (dict "context" . "component" "server") | nindent 4 }}
  ports:
    - port: 5000
{{- end -}}
