{{- /*
A bundled PostgreSQL: Secret, Service, StatefulSet, NetworkPolicy.

"library.postgresql" (dict "context" . "database" "mlflow" "clients" (list "server" "migration"))
    all its objects, where .Values.postgresql.enabled; "clients" are the components that may connect
"library.postgresql.host" .       its Service
"library.postgresql.secret" .     the Secret that holds the key `password`

The database's owner has the database's name. Clients get the password as PGPASSWORD, which libpq reads
by itself: so no URL holds a password, and none has to be escaped.
*/ -}}

{{- define "library.postgresql.host" -}}
{{ include "library.fullname" . }}-postgresql
{{- end -}}

{{- define "library.postgresql.secret" -}}
{{ .Values.postgresql.existingSecret | default (include "library.postgresql.host" .) }}
{{- end -}}

{{- define "library.postgresql" -}}
{{- $context := .context -}}
{{- $values := $context.Values.postgresql -}}
{{- $name := include "library.postgresql.host" $context -}}
{{- $image := dict "context" $context "image" $values.image -}}
{{- $self := dict "context" $context "component" "postgresql" "version" (include "library.imageVersion" $image) -}}
{{- if $values.enabled -}}
{{- if not $values.existingSecret }}
apiVersion: v1
kind: Secret
metadata:
  name: {{ $name }}
  namespace: {{ $context.Release.Namespace | quote }}
  labels:
    {{- include "library.labels" $self | nindent 4 }}
  annotations:
    {{- include "library.keep" $context | nindent 4 }}
data:
  password: {{ include "library.password" (dict "context" $context "secret" $name "key" "password") }}
---
{{- end }}
apiVersion: v1
kind: Service
metadata:
  name: {{ $name }}
  namespace: {{ $context.Release.Namespace | quote }}
  labels:
    {{- include "library.labels" $self | nindent 4 }}
spec:
  ports:
    - name: postgresql
      port: 5432
      targetPort: postgresql
  selector:
    {{- include "library.selectorLabels" $self | nindent 4 }}
---
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ $name }}
  namespace: {{ $context.Release.Namespace | quote }}
  labels:
    {{- include "library.labels" $self | nindent 4 }}
spec:
  replicas: 1
  # A Service with an address of its own: clients connect again at once after a restart, whatever their
  # resolver remembers.
  serviceName: {{ $name }}
  selector:
    matchLabels:
      {{- include "library.selectorLabels" $self | nindent 6 }}
  template:
    metadata:
      labels:
        {{- include "library.podLabels" (merge (dict "extra" $values.podLabels) $self) | nindent 8 }}
      {{- with $values.podAnnotations }}
      annotations:
        {{- toYaml . | nindent 8 }}
      {{- end }}
    spec:
      {{- with include "library.imagePullSecrets" $context }}
      {{- . | nindent 6 }}
      {{- end }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      securityContext:
        {{- include "library.podSecurityContext" 999 | nindent 8 }}
      {{- with include "library.scheduling" $values }}
      {{- . | trim | nindent 6 }}
      {{- end }}
      terminationGracePeriodSeconds: 60
      containers:
        - name: postgresql
          image: {{ include "library.image" $image | quote }}
          imagePullPolicy: {{ $values.image.pullPolicy }}
          securityContext:
            {{- include "library.containerSecurityContext" $context | nindent 12 }}
          env:
            - name: POSTGRES_DB
              value: {{ .database }}
            - name: POSTGRES_USER
              value: {{ .database }}
            - name: POSTGRES_PASSWORD
              valueFrom:
                secretKeyRef:
                  name: {{ include "library.postgresql.secret" $context }}
                  key: password
            # A folder of its own: initdb refuses the volume's root, which may hold lost+found.
            - name: PGDATA
              value: /var/lib/postgresql/data/pgdata
          ports:
            - name: postgresql
              containerPort: 5432
          # By TCP: while the image initialises the database, it listens on the socket alone.
          startupProbe:
            exec: &ready
              command: [pg_isready, --quiet, --host=127.0.0.1, --username={{ .database }}, --dbname={{ .database }}]
            periodSeconds: 2
            timeoutSeconds: 5
            failureThreshold: 150
          readinessProbe:
            exec: *ready
            periodSeconds: 5
            timeoutSeconds: 5
          livenessProbe:
            exec: *ready
            periodSeconds: 15
            timeoutSeconds: 5
            failureThreshold: 6
          resources:
            {{- toYaml $values.resources | nindent 12 }}
          volumeMounts:
            - name: data
              mountPath: /var/lib/postgresql/data
            - name: run
              mountPath: /var/run/postgresql
            - name: tmp
              mountPath: /tmp
      volumes:
        - name: run
          emptyDir: {sizeLimit: 16Mi}
        - name: tmp
          emptyDir: {sizeLimit: 256Mi}
  volumeClaimTemplates:
    - metadata:
        name: data
        labels:
          {{- include "library.selectorLabels" $self | nindent 10 }}
      spec:
        accessModes: [ReadWriteOnce]
        {{- with $values.storage.storageClassName }}
        storageClassName: {{ . | quote }}
        {{- end }}
        resources:
          requests:
            storage: {{ $values.storage.size }}
{{- if $context.Values.networkPolicy.enabled }}
---
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: {{ $name }}
  namespace: {{ $context.Release.Namespace | quote }}
  labels:
    {{- include "library.labels" $self | nindent 4 }}
spec:
  podSelector:
    matchLabels:
      {{- include "library.selectorLabels" $self | nindent 6 }}
  policyTypes: [Ingress, Egress]
  ingress:
    - from:
      {{- range .clients }}
        {{- include "library.peer" (dict "context" $context "component" .) | nindent 8 }}
      {{- end }}
      ports:
        - port: postgresql
  egress: []
{{- end }}
{{- end }}
{{- end -}}
