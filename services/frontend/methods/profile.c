/* What is this?      The methods of the recorder: start, stop, and the answers that come later.
 * State owned:       frontend_t.profile.
 * Must never:        wait for the recorder's thread.
 * Read next:         profiling.h, schemas/frontend/frontend_profile_stop_reply.fbs. */
#include "services/frontend/methods/profile.h"

#include <string.h>

#include "services/frontend/frontend.h"

#define DEFAULT_NAME "recording"

static const char *end_name(qn_recorder_end_t end)
{
    static const char *const names[] = {
        [QN_RECORDER_STOPPED] = "stopped", [QN_RECORDER_TIME_OVER] = "time over", [QN_RECORDER_FULL] = "file full"};
    return names[end];
}

/* ---- replies ---- */

static void fill_start(const profiling_view_t *view, qn_text_t services[QN_SERVICE_TOOL],
                       qn_frontend_profile_start_reply_t *reply)
{
    reply->name = qn_text(view->name);
    reply->max_s = view->seconds;
    reply->capture_path = qn_text(view->capture_path);
    reply->services = services;
    for (int service = QN_SERVICE_FRONTEND; service <= QN_SERVICE_COMPUTE; service++)
        if (view->services & (1u << service))
            services[reply->services_count++] = qn_text(qn_service_enum.names[service]);
}

static void fill_stop(const profiling_view_t *view, qn_frontend_profile_stop_reply_t *reply)
{
    reply->recorded = view->state == PROFILING_ENDED;
    reply->name = qn_text(view->name);
    reply->ended = qn_text(reply->recorded ? end_name(view->recorded.end) : "");
    reply->seconds = (float)((double)(view->recorded.end_ns - view->recorded.begin_ns) / 1e9);
    reply->requests = view->traced.requests;
    reply->steps = view->traced.steps;
    reply->hops = view->traced.hops;
    reply->missed = view->recorded.missed;
    reply->truncated = view->traced.truncated;
    reply->trace_bytes = view->traced.bytes;
    reply->capture_path = qn_text(view->capture_path);
    reply->trace_path = qn_text(view->trace_path);
}

static void finish_start(const qn_call_t *call, const profiling_view_t *view)
{
    qn_text_t services[QN_SERVICE_TOOL];
    qn_frontend_profile_start_reply_t reply = {0};
    fill_start(view, services, &reply);
    qn_call_finish(call, &reply);
}

static void finish_stop(const qn_call_t *call, const profiling_view_t *view)
{
    qn_frontend_profile_stop_reply_t reply = {0};
    if (view->error[0]) {
        qn_call_fail(call, 500, NULL, "the recording \"%s\" failed: %.400s", view->name, view->error);
        return;
    }
    fill_stop(view, &reply);
    qn_call_finish(call, &reply);
}

void frontend_answer_profile(profile_t *profile)
{
    if (!profile->active) return;
    profiling_view_t view;
    profiling_look(profile->profiling, &view);
    profile->active = view.state != PROFILING_ENDED;
    unsigned starts = view.state == PROFILING_STARTING ? 0 : profile->start_count;
    unsigned stops = view.state == PROFILING_ENDED ? profile->stop_count : 0;
    for (unsigned i = 0; i < starts; i++)
        finish_start(&profile->starts[i], &view);
    for (unsigned i = 0; i < stops; i++)
        finish_stop(&profile->stops[i], &view);
    profile->start_count -= starts;
    profile->stop_count -= stops;
}

/* ---- calls ---- */

static qn_call_outcome_t wait_for(qn_call_t *calls, unsigned *count, const qn_call_t *call)
{
    if (*count == PROFILE_CALLS_MAX)
        return qn_call_fail(call, 503, NULL, "%d calls wait for this recording already; try again", PROFILE_CALLS_MAX);
    calls[(*count)++] = *call;
    return QN_CALL_LATER;
}

static bool runs(const profiling_view_t *view)
{
    return view->state == PROFILING_STARTING || view->state == PROFILING_RUNNING;
}

/* Started again under its name, the one that runs goes on. */
qn_call_outcome_t frontend_method_profile_start(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    profile_t *profile = &((frontend_t *)state)->profile;
    const qn_frontend_profile_start_t *asked = message;
    const char *name = asked->name.bytes ? asked->name.data : DEFAULT_NAME;
    profiling_view_t view;
    (void)ret_reply;
    profiling_look(profile->profiling, &view);
    if (runs(&view) && strcmp(view.name, name) != 0)
        return qn_call_fail(call, 409, "name",
                            "name: the recording \"%s\" runs; stop it first (POST /debug/profiling/stop)", view.name);
    qn_err_t err = runs(&view) ? QN_OK : profiling_start(profile->profiling, name, asked->max_s);
    if (err == QN_ERR_INVALID) return qn_call_fail(call, 400, "name", "name: %.400s", qn_err_text());
    if (err) return qn_call_fail(call, 500, NULL, "%.400s", qn_err_text());
    profile->active = true;
    return wait_for(profile->starts, &profile->start_count, call);
}

qn_call_outcome_t frontend_method_profile_stop(void *state, qn_call_t *call, const void *message, void *ret_reply)
{
    profile_t *profile = &((frontend_t *)state)->profile;
    const qn_frontend_profile_stop_t *asked = message;
    profiling_view_t view;
    profiling_look(profile->profiling, &view);
    if (asked->name.bytes && strcmp(asked->name.data, view.name) != 0)
        return qn_call_fail(call, 404, "name", "name: there is no recording \"%s\"%s%s%s", asked->name.data,
                            view.name[0] ? "; the last one is \"" : "", view.name, view.name[0] ? "\"" : "");
    if (view.state == PROFILING_NONE) {
        fill_stop(&view, ret_reply);
        ((qn_frontend_profile_stop_reply_t *)ret_reply)->name = qn_text("");
        return QN_CALL_DONE;
    }
    if (runs(&view)) {
        profiling_stop(profile->profiling);
        profile->active = true;
        return wait_for(profile->stops, &profile->stop_count, call);
    }
    finish_stop(call, &view);
    return QN_CALL_LATER; /* answered above: its texts are of this function */
}
