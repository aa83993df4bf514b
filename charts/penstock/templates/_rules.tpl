{{/*
What each role may do in the namespaces it watches; nothing else stands here, so that it can be reviewed as a whole.
Server-side apply of an object that may not exist yet needs create beside patch.
*/}}

{{- define "penstock.operatorRules" -}}
# The user's spec is read, never written; only status is ours.
- apiGroups: [penstock.dev]
  resources: [modeldeployments]
  verbs: [get, list, watch]
- apiGroups: [penstock.dev]
  resources: [modeldeployments/status, workerpools/status, workerpools/scale]
  verbs: [get, patch]
- apiGroups: [penstock.dev]
  resources: [workerpools]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [apps]
  resources: [replicasets/scale]
  verbs: [get, patch]
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
# The drain script of a deployment's workers; written by name, never listed.
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, patch]
# The headless Services of prefill workers; likewise.
- apiGroups: [""]
  resources: [services]
  verbs: [get, create, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{- define "penstock.routerRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [penstock.dev]
  resources: [modeldeployments, workerpools]
  verbs: [get, list, watch]
# The condition RouterReady is the router's to write.
- apiGroups: [penstock.dev]
  resources: [modeldeployments/status]
  verbs: [get, patch]
{{- end -}}

{{- define "penstock.autoscalerRules" -}}
# Patched for one annotation: the pod-deletion cost of workers before a scale-in.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, patch]
- apiGroups: [penstock.dev]
  resources: [modeldeployments, workerpools]
  verbs: [get, list, watch]
# Replicas are written through the scale subresource only, and what is advised into status.
- apiGroups: [penstock.dev]
  resources: [workerpools/scale, modeldeployments/status]
  verbs: [get, patch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create]
{{- end -}}
