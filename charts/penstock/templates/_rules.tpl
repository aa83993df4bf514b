{{/* What each role may do, in the namespaces it watches. Nothing else stands here, so that it can be reviewed as a whole. */}}

{{- define "penstock.operatorRules" -}}
# The user's spec is read, never written; only status is ours.
- apiGroups: [penstock.dev]
  resources: [modeldeployments]
  verbs: [get, list, watch]
- apiGroups: [penstock.dev]
  resources: [workerpools]
  verbs: [get, list, watch, create, update, patch, delete]
- apiGroups: [penstock.dev]
  resources: [modeldeployments/status, workerpools/status, workerpools/scale]
  verbs: [get, update, patch]
- apiGroups: [apps]
  resources: [replicasets]
  verbs: [get, list, watch, create, update, patch, delete]
# create serves the dry run that checks a rendered pod; patch serves deletion costs; delete serves rolls without surge.
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch, create, patch, delete]
- apiGroups: [""]
  resources: [configmaps]
  verbs: [get, create, update, patch, delete]
- apiGroups: ["", events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}

{{- define "penstock.routerRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [penstock.dev]
  resources: [modeldeployments]
  verbs: [get, list, watch]
# The condition RouterReady is the router's to write.
- apiGroups: [penstock.dev]
  resources: [modeldeployments/status]
  verbs: [get, patch]
{{- end -}}

{{- define "penstock.autoscalerRules" -}}
- apiGroups: [""]
  resources: [pods]
  verbs: [get, list, watch]
- apiGroups: [penstock.dev]
  resources: [modeldeployments, workerpools]
  verbs: [get, list, watch]
{{- end -}}
