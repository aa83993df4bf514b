{{/* Name of a role's objects: <release>-<role>. Call with (dict "role" "router" "root" $). */}}
{{- define "penstock.name" -}}
{{- printf "%s-%s" .root.Release.Name .role | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of a role's cluster-wide objects; release and namespace keep two installations apart. */}}
{{- define "penstock.clusterName" -}}
{{- printf "%s:%s:%s" .root.Release.Name .root.Release.Namespace .role -}}
{{- end -}}

{{/* Labels that select a role's pods. */}}
{{- define "penstock.selector" -}}
app.kubernetes.io/name: penstock
app.kubernetes.io/instance: {{ .root.Release.Name }}
app.kubernetes.io/component: {{ .role }}
{{- end -}}

{{/* Labels of every object of a role. */}}
{{- define "penstock.labels" -}}
{{ include "penstock.selector" . }}
app.kubernetes.io/version: {{ .root.Chart.AppVersion | quote }}
app.kubernetes.io/part-of: penstock
app.kubernetes.io/managed-by: {{ .root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .root.Chart.Name .root.Chart.Version | replace "+" "_" }}
{{- end -}}

{{/* Reference of one of our images. Call with (dict "repository" "penstock/router" "root" $). */}}
{{- define "penstock.image" -}}
{{- $image := .root.Values.image -}}
{{- with $image.registry }}{{ trimSuffix "/" . }}/{{ end -}}
{{ .repository }}:{{ $image.tag | default .root.Chart.AppVersion }}
{{- end -}}

{{/* Restricted pod security, for the pod. */}}
{{- define "penstock.podSecurity" -}}
runAsNonRoot: true
runAsUser: 65532
runAsGroup: 65532
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{/* Restricted pod security, for a container. */}}
{{- define "penstock.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{/* Watched namespaces, comma-separated; empty means all. */}}
{{- define "penstock.watchNamespaces" -}}
{{- join "," .Values.watchNamespaces -}}
{{- end -}}

{{/*
The Deployment of one role. Call with (dict "role" "router" "root" $ "args" (list ...) "ports" (list (dict "name" "http" "port" 8000))).
Every role answers /healthz and /readyz on 8081 and /metrics on 9090.
*/}}
{{- define "penstock.deployment" -}}
{{- $role := index .root.Values .role -}}
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {{ include "penstock.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "penstock.labels" . | nindent 4 }}
spec:
  replicas: {{ $role.replicas }}
  revisionHistoryLimit: 5
  selector:
    matchLabels: {{- include "penstock.selector" . | nindent 6 }}
  {{- with .strategy }}
  strategy: {{- toYaml . | nindent 4 }}
  {{- end }}
  template:
    metadata:
      labels:
        {{- include "penstock.labels" . | nindent 8 }}
        {{- with $role.podLabels }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- $policies := .policyFiles | default dict }}
      {{- if or $role.podAnnotations $policies }}
      annotations:
        {{- with $role.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
        {{- if $policies }}
        # Files are read at the start only: another file is another pod.
        penstock.dev/policy-files: {{ $policies | toJson | sha256sum | trunc 16 | quote }}
        {{- end }}
      {{- end }}
    spec:
      serviceAccountName: {{ include "penstock.name" . }}
      # A Service called "penstock" would set PENSTOCK_PORT, which is one of our own flags.
      enableServiceLinks: false
      {{- with .root.Values.image.pullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $role.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      terminationGracePeriodSeconds: {{ $role.terminationGracePeriodSeconds }}
      securityContext: {{- include "penstock.podSecurity" . | nindent 8 }}
      {{- with $role.nodeSelector }}
      nodeSelector: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $role.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $role.affinity }}
      affinity: {{- toYaml . | nindent 8 }}
      {{- end }}
      {{- with $role.topologySpreadConstraints }}
      topologySpreadConstraints: {{- toYaml . | nindent 8 }}
      {{- end }}
      containers:
        - name: {{ .role }}
          image: {{ include "penstock.image" (dict "repository" $role.repository "root" .root) }}
          imagePullPolicy: {{ .root.Values.image.pullPolicy }}
          command: [python, -m, penstock.{{ .role }}]
          args:
            {{- range .args }}
            - {{ . | quote }}
            {{- end }}
            - --health-port=8081
            - --metrics-port=9090
            - --log-level={{ $role.logLevel }}
            {{- range $role.extraArgs }}
            - {{ . | quote }}
            {{- end }}
          env:
            - name: POD_NAME
              valueFrom: {fieldRef: {fieldPath: metadata.name}}
            - name: POD_NAMESPACE
              valueFrom: {fieldRef: {fieldPath: metadata.namespace}}
            {{- with $role.extraEnv }}
            {{- toYaml . | nindent 12 }}
            {{- end }}
          ports:
            {{- range .ports }}
            - {name: {{ .name }}, containerPort: {{ .port }}}
            {{- end }}
            - {name: health, containerPort: 8081}
            - {name: metrics, containerPort: 9090}
          startupProbe:
            httpGet: {path: /healthz, port: health}
            periodSeconds: 1
            timeoutSeconds: 2
            failureThreshold: 60
          livenessProbe:
            httpGet: {path: /healthz, port: health}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 3
          readinessProbe:
            httpGet: {path: /readyz, port: health}
            periodSeconds: {{ .readinessPeriod | default 2 }}
            timeoutSeconds: 2
            failureThreshold: 2
          resources: {{- toYaml $role.resources | nindent 12 }}
          securityContext: {{- include "penstock.containerSecurity" . | nindent 12 }}
          volumeMounts:
            - {name: tmp, mountPath: /tmp}
            {{- range .secrets }}
            - {name: {{ .name }}, mountPath: /etc/penstock/{{ .name }}, readOnly: true}
            {{- end }}
            {{- if $policies }}
            - {name: policies, mountPath: /etc/penstock/policies, readOnly: true}
            {{- end }}
      volumes:
        - name: tmp
          emptyDir: {sizeLimit: 64Mi}
        {{- range .secrets }}
        - name: {{ .name }}
          secret: {secretName: {{ .secret }}}
        {{- end }}
        {{- if $policies }}
        - name: policies
          configMap: {name: {{ include "penstock.name" . }}-policies}
        {{- end }}
{{- if $policies }}
---
apiVersion: v1
kind: ConfigMap
metadata:
  name: {{ include "penstock.name" . }}-policies
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "penstock.labels" . | nindent 4 }}
data:
  {{- range $name, $text := $policies }}
  {{ $name }}.py: {{ $text | toJson }}
  {{- end }}
{{- end }}
{{- end -}}

{{/*
Bind a role's service account to rules: in the watched namespaces only, or in the whole cluster where none are named.
Call with (dict "role" "router" "root" $ "rules" (list ...)).
*/}}
{{- define "penstock.namespacedRules" -}}
{{- $ := . -}}
{{- if .root.Values.watchNamespaces }}
{{- range .root.Values.watchNamespaces }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata:
  name: {{ include "penstock.clusterName" $ }}
  namespace: {{ . }}
  labels: {{- include "penstock.labels" $ | nindent 4 }}
rules: {{- $.rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: {{ include "penstock.clusterName" $ }}
  namespace: {{ . }}
  labels: {{- include "penstock.labels" $ | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: {{ include "penstock.clusterName" $ | quote }}}
subjects:
  - {kind: ServiceAccount, name: {{ include "penstock.name" $ }}, namespace: {{ $.root.Release.Namespace }}}
{{- end }}
{{- else }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata:
  name: {{ include "penstock.clusterName" . }}
  labels: {{- include "penstock.labels" . | nindent 4 }}
rules: {{- .rules | nindent 2 }}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: {{ include "penstock.clusterName" . }}
  labels: {{- include "penstock.labels" . | nindent 4 }}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: {{ include "penstock.clusterName" . | quote }}}
subjects:
  - {kind: ServiceAccount, name: {{ include "penstock.name" . }}, namespace: {{ .root.Release.Namespace }}}
{{- end }}
{{- end -}}

{{/* A role's service account; its token reaches the API server only where the role needs it. */}}
{{- define "penstock.serviceAccount" -}}
apiVersion: v1
kind: ServiceAccount
metadata:
  name: {{ include "penstock.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "penstock.labels" . | nindent 4 }}
  {{- with (index .root.Values .role).serviceAccountAnnotations }}
  annotations: {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{/* A PodDisruptionBudget, where there is more than one replica to keep. */}}
{{- define "penstock.disruptionBudget" -}}
apiVersion: policy/v1
kind: PodDisruptionBudget
metadata:
  name: {{ include "penstock.name" . }}
  namespace: {{ .root.Release.Namespace }}
  labels: {{- include "penstock.labels" . | nindent 4 }}
spec:
  maxUnavailable: 1
  selector:
    matchLabels: {{- include "penstock.selector" . | nindent 6 }}
{{- end -}}
