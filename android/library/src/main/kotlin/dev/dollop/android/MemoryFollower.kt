// What the system says of memory, told to an engine. Callbacks come on the main thread; the engine is asked on its own.
package dev.dollop.android

import android.app.Activity
import android.app.Application
import android.content.ComponentCallbacks2
import android.content.Context
import android.content.res.Configuration
import android.os.Bundle
import dev.dollop.DollopException
import dev.dollop.Engine
import dev.dollop.Status
import dev.dollop.TrimLevel
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Job
import kotlinx.coroutines.flow.MutableStateFlow
import kotlinx.coroutines.launch

/**
 * What a level of [ComponentCallbacks2.onTrimMemory] asks of an engine. New levels may come between the known ones, so each counts
 * as the next lower one that is known.
 *
 * | Android | engine |
 * |---|---|
 * | an activity is in front again | [TrimLevel.NORMAL] |
 * | `RUNNING_MODERATE`, `RUNNING_LOW`, `UI_HIDDEN` | [TrimLevel.MODERATE] |
 * | `RUNNING_CRITICAL`, `BACKGROUND` | [TrimLevel.CRITICAL] |
 * | `MODERATE`, `COMPLETE`, `onLowMemory` | [TrimLevel.COMPLETE] |
 *
 * Since Android 14 apps are told of `UI_HIDDEN` and `BACKGROUND` alone.
 */
@Suppress("DEPRECATION") // Older systems say them.
public fun trimLevel(onTrimMemory: Int): TrimLevel = when {
    onTrimMemory >= ComponentCallbacks2.TRIM_MEMORY_MODERATE -> TrimLevel.COMPLETE
    onTrimMemory >= ComponentCallbacks2.TRIM_MEMORY_BACKGROUND -> TrimLevel.CRITICAL
    onTrimMemory >= ComponentCallbacks2.TRIM_MEMORY_UI_HIDDEN -> TrimLevel.MODERATE
    onTrimMemory >= ComponentCallbacks2.TRIM_MEMORY_RUNNING_CRITICAL -> TrimLevel.CRITICAL
    onTrimMemory >= ComponentCallbacks2.TRIM_MEMORY_RUNNING_MODERATE -> TrimLevel.MODERATE
    else -> TrimLevel.NORMAL
}

/** What became of a wish of the system: the bytes that went back to it, or why none could. */
public data class Trimmed(val level: TrimLevel, val bytes: Long, val failure: DollopException?)

/**
 * Has the engine give memory back when the system asks for it, and take it again when an activity is in front. [scope] outlives the
 * engine's use; closing what is returned, closing the engine or cancelling the scope ends it. [onTrimmed] hears of each change, in
 * [scope].
 */
public fun Engine.followMemory(context: Context, scope: CoroutineScope, onTrimmed: (Trimmed) -> Unit = {}): AutoCloseable =
    MemoryFollower(this, context.applicationContext, scope, onTrimmed)

private class MemoryFollower(
    private val engine: Engine,
    private val context: Context,
    scope: CoroutineScope,
    private val onTrimmed: (Trimmed) -> Unit,
) : AutoCloseable, ComponentCallbacks2, Application.ActivityLifecycleCallbacks {
    /** The last word counts: while the engine follows one, others may come and go. */
    private val wanted = MutableStateFlow(TrimLevel.NORMAL)
    private val job: Job = scope.launch { follow() }

    init {
        context.registerComponentCallbacks(this)
        (context as? Application)?.registerActivityLifecycleCallbacks(this)
        job.invokeOnCompletion { unregister() }
    }

    private suspend fun follow() {
        var followed = TrimLevel.NORMAL
        wanted.collect { level ->
            if (level == followed) return@collect
            val trimmed = try {
                Trimmed(level, engine.trim(level), null)
            } catch (e: DollopException) {
                if (e.status == Status.CLOSED) return@collect job.cancel()
                // The cache could not grow; it stays as it is, and the next wish is followed.
                Trimmed(level, 0, e)
            }
            followed = level
            onTrimmed(trimmed)
        }
    }

    private fun unregister() {
        context.unregisterComponentCallbacks(this)
        (context as? Application)?.unregisterActivityLifecycleCallbacks(this)
    }

    override fun close(): Unit = job.cancel()

    override fun onTrimMemory(level: Int) {
        wanted.value = trimLevel(level)
    }

    @Deprecated("Systems before Android 14 call it.")
    override fun onLowMemory() {
        wanted.value = TrimLevel.COMPLETE
    }

    override fun onActivityStarted(activity: Activity) {
        wanted.value = TrimLevel.NORMAL
    }

    override fun onConfigurationChanged(newConfig: Configuration) {}
    override fun onActivityCreated(activity: Activity, savedInstanceState: Bundle?) {}
    override fun onActivityResumed(activity: Activity) {}
    override fun onActivityPaused(activity: Activity) {}
    override fun onActivityStopped(activity: Activity) {}
    override fun onActivitySaveInstanceState(activity: Activity, outState: Bundle) {}
    override fun onActivityDestroyed(activity: Activity) {}
}
