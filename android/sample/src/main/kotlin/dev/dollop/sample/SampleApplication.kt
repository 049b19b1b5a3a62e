// The process-wide state of the app.
package dev.dollop.sample

import android.app.Application
import kotlinx.coroutines.CoroutineScope
import kotlinx.coroutines.Dispatchers
import kotlinx.coroutines.SupervisorJob

/** The application. Its [scope] outlives the screens: the conversation is saved and the engine trimmed in it. */
class SampleApplication : Application() {
    val scope: CoroutineScope = CoroutineScope(SupervisorJob() + Dispatchers.Main.immediate)
}
